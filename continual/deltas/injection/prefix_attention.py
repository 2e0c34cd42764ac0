"""Keys and values of a delta's own before those of the text, in any model whose attention transformers dispatches.

Transformers look their attention function up by a name in the configuration. Inside `before_keys_and_values` that name
is ours: a function that puts the delta's keys and values in front, shows them to every query, and calls SDPA.
The generation cache never holds them, since it is filled before the function is called.

Shapes: B rows, H heads, T tokens, P the most keys that are put before a row, d the size of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from continual.deltas.injection.placed_edit import PlacedEdit, RowRange

ATTENTION_NAME = "continual"

_FRONTS: WeakKeyDictionary[nn.Module, list[PlacedEdit]] = WeakKeyDictionary()


@contextmanager
def prepend_keys_values(module: nn.Module, change: PlacedEdit) -> Iterator[None]:
    """Inside, the attention `module` attends to the keys and values of a change, before its own."""
    config: Any = module.config
    before = config._attn_implementation
    _FRONTS.setdefault(module, []).append(change)
    config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _FRONTS[module].remove(change)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if changes := _FRONTS.get(module):
        front, hidden = _front(changes, key)
        added, text = front.shape[3], key.shape[2]
        attention_mask = _longer(attention_mask, hidden, added=added, text=text)
        key, value = (torch.cat((own, given), dim=2) for own, given in zip(front, (key, value), strict=True))
        if position_bias is not None:
            position_bias = F.pad(position_bias, (added, 0))
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
    )
    return found


def _front(changes: Sequence[PlacedEdit], key: Tensor) -> tuple[Tensor, Tensor | None]:
    """Keys and values [2, B, H, P, d] for before those of the text, and which [B, P] a row has not; None for none."""
    batch, heads, _, width = key.shape
    own: dict[RowRange, list[Tensor]] = {}
    for change in changes:
        rows = change.rows or RowRange(0, batch, batch)
        own.setdefault(rows, []).append(change.compute_change(rows.take(key)))  # [2, P, H · d], or [B, 2, P, H · d]
    made = {rows: torch.cat(several, dim=-2) for rows, several in own.items()}
    longest = max(one.shape[-2] for one in made.values())
    front = key.new_zeros(2, batch, heads, longest, width)
    hidden = torch.ones(batch, longest, dtype=torch.bool, device=key.device)
    for rows, one in made.items():
        place = slice(rows.begin, rows.end), slice(one.shape[-2])
        by_head = one.reshape(*one.shape[:-1], heads, width).transpose(-2, -3).to(key.dtype)
        front[:, place[0], :, place[1]] = by_head.transpose(0, 1) if by_head.dim() == 5 else by_head.unsqueeze(1)
        hidden[place] = False
    everywhere = sum(len(rows) * one.shape[-2] for rows, one in made.items()) == batch * longest
    return front, None if everywhere else hidden


def _longer(mask: Tensor | None, hidden: Tensor | None, *, added: int, text: int) -> Tensor | None:
    """The mask [B, 1, queries, P + T] of one [B, 1, queries, T]; none where every query sees everything."""
    if hidden is None:
        return mask if mask is None else F.pad(mask, (added, 0), value=0.0 if mask.is_floating_point() else True)
    if mask is None:
        return F.pad(~hidden, (0, text), value=True)[:, None, None]
    seen = (~hidden)[:, None, None].expand(-1, -1, mask.shape[2], -1)
    if mask.is_floating_point():
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
    return torch.cat((seen, mask.expand(len(hidden), -1, -1, -1)), dim=3)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # SDPA's mask is left out where causality alone says the same; with keys in front it no longer does.
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
