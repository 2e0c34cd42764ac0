"""From texts to vectors: hidden states, pooled over the tokens of each text.

Shapes: N texts, B texts of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.hub import Pooling
from continual.backbones.readout import Readout
from continual.deltas import Delta
from continual.features.forward import ForwardRequest, run_forward
from continual.features.tokens import INFERENCE_BATCH, Tokens, pad

R = TypeVar("R")
HiddenStateReader = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""From the hidden states [B, T, D] and the mask [B, T] of some texts to one result per text, on the CPU."""


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool the hidden states of each text to one vector.

    Args:
        hidden: Hidden states [B, T, D].
        mask: 1 for the text's own tokens, 0 for padding [B, T].
        pooling: `mean` over the text's own tokens; `cls`, the first token; or `last`, the text's last own token.

    Returns:
        Vectors [B, D], float32.
    """
    if pooling == "cls":
        return hidden[:, 0].float()
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last].float()
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1)


def pooled_features(backbone: Backbone, batch: dict[str, Tensor], readout: Readout) -> Tensor:
    """Return the vectors [B, D] of a padded batch, through the backbone with the deltas attached to it."""
    with backbone.autocast():
        hidden = backbone.hidden_states(batch, layers=readout.layers)
    return pool(hidden, batch["attention_mask"], readout.pooling)


class _Item(NamedTuple):
    """A text whose hidden states are read behind a number of layers, None for all."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None
    reader: HiddenStateReader
    layers: int | None


def forward_hidden(
    tokens: Tokens, reader: HiddenStateReader, gather: Callable[[list[Tensor]], R], *, layers: int | None = None
) -> ForwardRequest[R]:
    """Request a function of the last hidden states of texts.

    Texts of one batch may be read behind different numbers of layers: one pass through the deepest serves all.

    Args:
        tokens: Tokens of the N texts.
        reader: Computes one tensor of any shape per text from hidden states [B, T, D] and mask [B, T]; texts with the
            same reader are passed to it together.
        gather: Combines the N tensors.
        layers: How many of the backbone's lowest layers compute the states; None for all.
    """
    types = tokens.types or [None] * len(tokens)
    items = [_Item(ids, type_ids, reader, layers) for ids, type_ids in zip(tokens.ids, types, strict=True)]
    return ForwardRequest(items, tokens.lengths, _read_hidden_states, gather, INFERENCE_BATCH)


def _read_hidden_states(backbone: Backbone, items: Sequence[_Item]) -> list[Tensor]:
    """The result of each text's reader, which is called once for all of its texts behind the same layers."""
    types = [item.types for item in items if item.types is not None]
    tokens = Tokens(tuple(item.ids for item in items), tuple(types) if len(types) == len(items) else None)
    batch, groups = pad(backbone, tokens, range(len(items))), [(item.layers, item.reader) for item in items]
    with backbone.autocast():
        hidden = backbone.hidden_states_at(batch, {layers for layers, _ in groups})
    results: dict[int, Tensor] = {}
    for group in dict.fromkeys(groups):
        layers, reader = group
        rows = [i for i, row_group in enumerate(groups) if row_group == group]
        results |= zip(rows, reader(hidden[layers][rows], batch["attention_mask"][rows]), strict=True)
    return [results[i] for i in range(len(items))]


def _pool_to_cpu(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Sequence[Tensor]:
    return pool(hidden, mask, pooling).cpu().unbind()


# One object for each pooling: requests share a call of the reader only where it is the same object.
_POOLING_READERS: Mapping[Pooling, HiddenStateReader] = {
    "mean": partial(_pool_to_cpu, pooling="mean"),
    "cls": partial(_pool_to_cpu, pooling="cls"),
    "last": partial(_pool_to_cpu, pooling="last"),
}


def forward_pooled(backbone: Backbone, tokens: Tokens, readout: Readout) -> ForwardRequest[Tensor]:
    """Request the vectors [N, D] of texts, on the CPU."""

    def stack(vectors: list[Tensor]) -> Tensor:
        return torch.stack(vectors) if vectors else torch.empty(0, backbone.hidden_size)

    return forward_hidden(tokens, _POOLING_READERS[readout.pooling], stack, layers=readout.layers)


def encode(backbone: Backbone, tokens: Tokens, *, delta: Delta | None = None) -> Tensor:
    """Return vectors [N, D] of texts, on the CPU, through a delta or the frozen backbone.

    The readout is that of the delta's head, else that of the backbone.
    """
    readout = delta.head.readout if delta and delta.head else backbone.readout
    return run_forward(backbone, delta, forward_pooled(backbone, tokens, readout))
