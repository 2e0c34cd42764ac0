"""Frozen features in which tasks are told apart: all layers side by side, through a random projection.

    z = [h₀ / ‖h₀‖; …; h_L / ‖h_L‖]     φ(x) = max(P z, 0),  P_ij ~ N(0, 1)

h_l is a text's pooled state after layer l. Layers tell different things apart, from words to sentences, and the random
nonlinear projection lets a linear rule tell apart what no rule linear in z can: McDonnell et al. (2023), "RanPAC:
Random Projections and Pre-trained Models for Continual Learning" (arXiv:2307.02251).

Shapes: N texts, D hidden size, L layers, M width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.features.pooling import pool
from continual.features.tokens import Tokens, pad, sorted_batches

WIDTH_FACTOR, MAX_WIDTH = 2, 6144  # M is twice the size of z, but not more: a router takes M³ operations to make
MAX_LAYERS = 8  # of a deep backbone, evenly spaced; its embeddings and its last layer are always among them
SEED = 0


@dataclass(frozen=True)
class FrozenFeatures:
    """N texts through the frozen backbone. vectors [N, D]: pooled last states · wide [N, M]: φ(x)."""

    pooled: Tensor
    random_features: Tensor

    def take(self, indices: Sequence[int]) -> "FrozenFeatures":
        """The chosen texts."""
        return FrozenFeatures(self.pooled[indices], self.random_features[indices])


@torch.inference_mode()
def frozen_features(backbone: Backbone, tokens: Tokens) -> FrozenFeatures:
    """The two kinds of features of tokenized texts, on the CPU, from one pass."""
    vectors, wide = torch.empty(len(tokens), backbone.hidden_size), torch.empty(len(tokens), 0)
    for indices in sorted_batches(tokens.lengths):
        batch = pad(backbone, tokens, indices)
        with backbone.autocast():
            layers = backbone.layer_states(batch)
        states = [pool(layer, batch["attention_mask"], backbone.pooling) for layer in layers]
        chosen = torch.cat([F.normalize(states[i], dim=-1) for i in _spaced(len(states))], dim=1)
        projection = _projection(chosen.shape[1])
        if not wide.numel():
            wide = torch.empty(len(tokens), projection.shape[1])
        vectors[indices] = states[-1].cpu()
        wide[indices] = torch.relu(chosen @ projection.to(chosen.device)).cpu()
    return FrozenFeatures(vectors, wide)


def _spaced(count: int) -> list[int]:
    return [round(place) for place in np.linspace(0, count - 1, min(count, MAX_LAYERS)).tolist()]


@cache
def _projection(size: int) -> Tensor:
    """P [size, M]. NumPy promises that a `RandomState` draws the same numbers in every release."""
    drawn = np.random.RandomState(SEED).standard_normal((size, min(WIDTH_FACTOR * size, MAX_WIDTH)))
    return torch.from_numpy(drawn.astype(np.float32))
