"""Prefix attention: learned keys and values before those of the text, in any model.

Transformers looks attention functions up by a name in the model's configuration (`AttentionInterface`). Inside
`prepend_keys_values` that name is `ATTENTION_NAME`: a function that concatenates the delta's keys and values, extends
the mask so that every query attends to them, and calls SDPA, or the model's own function where its scores are capped,
which SDPA cannot. The generation cache never holds them, since it is filled
before the function is called.

Shapes: B rows, H heads, T tokens of the text, Q queries, P the longest prefix of any row, d the size of a head.
"""

import sys
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

_PREFIXES: WeakKeyDictionary[nn.Module, list[PlacedEdit]] = WeakKeyDictionary()


@contextmanager
def prepend_keys_values(module: nn.Module, edit: PlacedEdit) -> Iterator[None]:
    """Prepend the keys and values that an edit computes to those of an attention, inside the block.

    Args:
        module: The attention.
        edit: Its change is [2, P', H · d], keys and values of a prefix of P' vectors, or [B', 2, P', H · d] for a
            prefix of its own for each of the edit's B' rows.
    """
    config: Any = module.config
    implementation = config._attn_implementation
    _PREFIXES.setdefault(module, []).append(edit)
    config._attn_implementation = ATTENTION_NAME
    try:
        yield
    finally:
        config._attn_implementation = implementation
        _PREFIXES[module].remove(edit)


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
    """Attention with the module's prefixes; query [B, H, Q, d], key and value [B, H, T, d], mask [B, 1, Q, T]."""
    if edits := _PREFIXES.get(module):
        prefix, padding = _prefix(edits, key)
        prefix_length, text_length = prefix.shape[3], key.shape[2]
        attention_mask = _extend_mask(attention_mask, padding, prefix_length=prefix_length, text_length=text_length)
        key, value = (torch.cat(pair, dim=2) for pair in zip(prefix, (key, value), strict=True))
        if position_bias is not None:
            position_bias = F.pad(position_bias, (prefix_length, 0))
    if kwargs.get("softcap") is not None:
        return _attend_capped(module, query, key, value, attention_mask, **kwargs)
    output: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
    )
    return output


def _attend_capped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention that the module's file in transformers writes out, whose scores are c · tanh(score / c)."""
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    written_out: Any = sys.modules[type(module).__module__]
    states: Tensor = written_out.eager_attention_forward(module, query, key, value, mask, **kwargs)[0]
    return states, None


def _prefix(edits: Sequence[PlacedEdit], key: Tensor) -> tuple[Tensor, Tensor | None]:
    """Compute the prefixes of all rows, left-aligned and padded to the longest.

    Args:
        edits: The edits at one attention; those of the same rows are concatenated.
        key: The text's keys [B, H, T, d].

    Returns:
        Keys and values [2, B, H, P, d]; and a mask [B, P] that is True at padding, None where there is none.
    """
    batch, heads, _, width = key.shape
    changes: dict[RowRange, list[Tensor]] = {}
    for edit in edits:
        rows = edit.rows or RowRange(0, batch, batch)
        changes.setdefault(rows, []).append(edit.compute_change(rows.take(key)))  # [2, P, H · d], or [B, 2, P, H · d]
    prefixes = {rows: torch.cat(of_rows, dim=-2) for rows, of_rows in changes.items()}
    longest = max(prefix.shape[-2] for prefix in prefixes.values())
    padded = key.new_zeros(2, batch, heads, longest, width)
    padding = torch.ones(batch, longest, dtype=torch.bool, device=key.device)
    for rows, prefix in prefixes.items():
        batch_rows, columns = slice(rows.begin, rows.end), slice(prefix.shape[-2])
        by_head = prefix.reshape(*prefix.shape[:-1], heads, width).transpose(-2, -3).to(key.dtype)
        padded[:, batch_rows, :, columns] = by_head.transpose(0, 1) if by_head.dim() == 5 else by_head.unsqueeze(1)
        padding[batch_rows, columns] = False
    is_full = sum(len(rows) * prefix.shape[-2] for rows, prefix in prefixes.items()) == batch * longest
    return padded, None if is_full else padding


def _extend_mask(mask: Tensor | None, padding: Tensor | None, *, prefix_length: int, text_length: int) -> Tensor | None:
    """Extend an attention mask [B, 1, Q, T] by the prefixes to [B, 1, Q, P + T].

    Every query attends to the prefix of its row, but not to padding. The mask is boolean, or added to the scores; None,
    before and after, where every query attends to everything.
    """
    if padding is None:
        return (
            mask if mask is None else F.pad(mask, (prefix_length, 0), value=0.0 if mask.is_floating_point() else True)
        )
    if mask is None:
        return F.pad(~padding, (0, text_length), value=True)[:, None, None]
    visible = (~padding)[:, None, None].expand(-1, -1, mask.shape[2], -1)
    if mask.is_floating_point():
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, torch.finfo(mask.dtype).min)
    return torch.cat((visible, mask.expand(len(padding), -1, -1, -1)), dim=3)


def _make_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # SDPA leaves the mask out where its causal default is equivalent; with keys in front it no longer is.
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(ATTENTION_NAME, _attend)
AttentionMaskInterface.register(ATTENTION_NAME, _make_mask)
