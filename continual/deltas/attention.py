"""Keys and values of a delta's own before those of the text, in any model whose attention transformers dispatches.

Transformers look their attention function up by a name in the configuration. Inside `before_keys_and_values` that name
is ours: a function that puts the delta's keys and values in front, shows them to every query, and calls SDPA.
The generation cache never holds them, since it is filled before the function is called.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "continual"

Front = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # keys and values [B, H, T, d] to [B, H, P + T, d]

_FRONTS: WeakKeyDictionary[nn.Module, list[Front]] = WeakKeyDictionary()


@contextmanager
def before_keys_and_values(module: nn.Module, front: Front) -> Iterator[None]:
    """Inside, the attention `module` attends to what `front` puts before its keys and values."""
    config: Any = module.config
    before = config._attn_implementation
    _FRONTS.setdefault(module, []).append(front)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _FRONTS[module].remove(front)


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
    text = key.shape[2]
    for front in _FRONTS.get(module, ()):
        key, value = front(key, value)
    added = key.shape[2] - text
    if attention_mask is not None:
        seen = 0.0 if attention_mask.is_floating_point() else True
        attention_mask = F.pad(attention_mask, (added, 0), value=seen)
    if position_bias is not None:
        position_bias = F.pad(position_bias, (added, 0))
    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
    )
    return found


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # SDPA's mask is left out where causality alone says the same; with keys in front it no longer does.
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    return mask


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
