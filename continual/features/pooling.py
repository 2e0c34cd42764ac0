"""From texts to vectors: hidden states, pooled over the tokens of each text.

Shapes: N texts, B texts of a batch, T tokens, D hidden size.
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


def pooled_features(backbone: Backbone, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Return pooled vectors [B, D] of a padded batch, through the backbone with the deltas attached to it."""
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    return pool(hidden, batch["attention_mask"], pooling)


def forward_hidden(tokens: Tokens, reader: HiddenStateReader, gather: Callable[[list[Tensor]], R]) -> ForwardRequest[R]:
    """Request a function of the last hidden states of texts.

    Args:
        tokens: Tokens of the N texts.
        reader: Computes one tensor of any shape per text from hidden states [B, T, D] and mask [B, T]; texts with the
            same reader are passed to it together.
        gather: Combines the N tensors.
    """
    types = tokens.types or [None] * len(tokens)
    items = [(ids, type_ids, reader) for ids, type_ids in zip(tokens.ids, types, strict=True)]
    return ForwardRequest(items, tokens.lengths, _read_hidden_states, gather, INFERENCE_BATCH)


def _read_hidden_states(
    backbone: Backbone, items: Sequence[tuple[tuple[int, ...], tuple[int, ...] | None, HiddenStateReader]]
) -> list[Tensor]:
    """The result of each text's reader, which is called once for all of its texts."""
    ids, types, readers = zip(*items, strict=True)
    batch = pad(backbone, Tokens(ids, None if None in types else types), range(len(items)))
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    results: dict[int, Tensor] = {}
    for reader in dict.fromkeys(readers):
        rows = [i for i, row_reader in enumerate(readers) if row_reader is reader]
        results |= zip(rows, reader(hidden[rows], batch["attention_mask"][rows]), strict=True)
    return [results[i] for i in range(len(items))]


def _pool_to_cpu(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Sequence[Tensor]:
    return pool(hidden, mask, pooling).cpu().unbind()


# One object for each pooling: requests share a call of the reader only where it is the same object.
_POOLING_READERS: Mapping[Pooling, HiddenStateReader] = {
    "mean": partial(_pool_to_cpu, pooling="mean"),
    "cls": partial(_pool_to_cpu, pooling="cls"),
    "last": partial(_pool_to_cpu, pooling="last"),
}


def forward_pooled(backbone: Backbone, tokens: Tokens, pooling: Pooling) -> ForwardRequest[Tensor]:
    """Request the pooled vectors [N, D] of texts, on the CPU."""
    empty = torch.empty(0, backbone.hidden_size)
    return forward_hidden(tokens, _POOLING_READERS[pooling], lambda vectors: torch.stack(vectors) if vectors else empty)


def encode(backbone: Backbone, tokens: Tokens, *, delta: Delta | None = None) -> Tensor:
    """Return pooled vectors [N, D] of texts, on the CPU, through a delta or the frozen backbone.

    The pooling is that of the delta's head, else that of the backbone.
    """
    pooling = delta.head.pooling if delta and delta.head else backbone.pooling
    return run_forward(backbone, delta, forward_pooled(backbone, tokens, pooling))
