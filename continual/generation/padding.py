"""Pad rows of tokens to one batch.

Shapes: B rows, T tokens of the longest one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.generation.sampling import Ids


def pad_batch(backbone: Backbone, ids: Sequence[Ids]) -> dict[str, Tensor]:
    """Pad texts on the right to `input_ids` and `attention_mask`, each [B, T]."""
    mask = [(1,) * len(row) for row in ids]
    return {
        "input_ids": pad_ids(backbone, ids, backbone.tokenizer.pad_token_id),
        "attention_mask": pad_ids(backbone, mask, 0),
    }


def pad_ids(backbone: Backbone, ids: Sequence[Ids], fill: int) -> Tensor:
    """Pad rows of ids on the right with `fill` to one tensor [B, T] on the backbone's device."""
    width = max(map(len, ids))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in ids], device=backbone.device)
