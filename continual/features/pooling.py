"""From texts to vectors: tokens, batches of like length, pooled hidden states.

Shapes: B batch, T tokens, D hidden size, N texts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.hub import Pooling
from continual.deltas import Delta
from continual.features.forward import ForwardRequest, run_forward
from continual.features.tokens import INFERENCE_BATCH, Tokens, pad

R = TypeVar("R")
HiddenStateReader = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""What is kept of each text, on the CPU, given the states [B, T, D] of some and their mask [B, T]."""


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector [B, D] of each text's hidden states [B, T, D]: their mean over its own tokens, or the first one's."""
    if pooling == "cls":
        return hidden[:, 0].float()
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1)


def pooled_features(backbone: Backbone, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Pooled vectors [B, D] of a padded batch through the backbone as it is now, with what is attached."""
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    return pool(hidden, batch["attention_mask"], pooling)


def forward_hidden(tokens: Tokens, look: HiddenStateReader, gather: Callable[[list[Tensor]], R]) -> ForwardRequest[R]:
    """To read texts, and to look at their last hidden states."""
    types = tokens.types or [None] * len(tokens)
    items = [(ids, own, look) for ids, own in zip(tokens.ids, types, strict=True)]
    return ForwardRequest(items, tokens.lengths, _looked_at, gather, INFERENCE_BATCH)


def _looked_at(
    backbone: Backbone, items: Sequence[tuple[tuple[int, ...], tuple[int, ...] | None, HiddenStateReader]]
) -> list[Tensor]:
    """What each text's look keeps of it; texts of the same look are looked at together."""
    ids, types, looks = zip(*items, strict=True)
    batch = pad(backbone, Tokens(ids, None if None in types else types), range(len(items)))
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    found: dict[int, Tensor] = {}
    for look in dict.fromkeys(looks):
        rows = [i for i, own in enumerate(looks) if own is look]
        found |= zip(rows, look(hidden[rows], batch["attention_mask"][rows]), strict=True)
    return [found[i] for i in range(len(items))]


def _pooled_on_cpu(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Sequence[Tensor]:
    return pool(hidden, mask, pooling).cpu().unbind()


_POOLED: Mapping[Pooling, HiddenStateReader] = {
    "mean": partial(_pooled_on_cpu, pooling="mean"),
    "cls": partial(_pooled_on_cpu, pooling="cls"),
}


def forward_pooled(backbone: Backbone, tokens: Tokens, pooling: Pooling) -> ForwardRequest[Tensor]:
    """To read the pooled vectors [N, D] of texts."""
    nothing = torch.empty(0, backbone.hidden_size)
    return forward_hidden(tokens, _POOLED[pooling], lambda found: torch.stack(found) if found else nothing)


def encode(backbone: Backbone, tokens: Tokens, *, delta: Delta | None = None) -> Tensor:
    """Pooled vectors [N, D] of all texts, on the CPU, through `delta` or, without one, the frozen backbone."""
    pooling = delta.head.pooling if delta and delta.head else backbone.pooling
    return run_forward(backbone, delta, forward_pooled(backbone, tokens, pooling))
