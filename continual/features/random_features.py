"""Random features of the frozen backbone that separate tasks: all layers, randomly projected.

    z = [h₀ / ‖h₀‖; …; h_L / ‖h_L‖]     φ(x) = max(P z, 0),  P_ij ~ N(0, 1)

h_l is a text's pooled state after layer l. Layers separate different properties, from words to sentences, and after the
random nonlinear projection a linear rule separates tasks that no rule linear in z can: McDonnell et al. (2023),
"RanPAC: Random Projections and Pre-trained Models for Continual Learning" (arXiv:2307.02251).

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

WIDTH_FACTOR, MAX_WIDTH = 2, 6144  # M is twice the size of z, up to a maximum: building a router takes M³ operations
MAX_LAYERS = 8  # of a deep backbone, evenly spaced, with its embeddings and its last layer
SEED = 0


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of N texts in the frozen backbone.

    Attributes:
        pooled: Pooled last hidden states [N, D].
        random_features: Random features φ(x) [N, M].
    """

    pooled: Tensor
    random_features: Tensor

    def take(self, indices: Sequence[int]) -> "FrozenFeatures":
        """Select texts by index."""
        return FrozenFeatures(self.pooled[indices], self.random_features[indices])


@torch.inference_mode()
def frozen_features(backbone: Backbone, tokens: Tokens) -> FrozenFeatures:
    """Compute pooled and random features of N texts in one pass, on the CPU: [N, D] and [N, M]."""
    pooled, features = torch.empty(len(tokens), backbone.hidden_size), torch.empty(len(tokens), 0)
    for indices in sorted_batches(tokens.lengths):
        batch = pad(backbone, tokens, indices)
        with backbone.autocast():
            layers = backbone.layer_states(batch)
        states = [pool(layer, batch["attention_mask"], backbone.pooling) for layer in layers]
        z = torch.cat([F.normalize(states[i], dim=-1) for i in _evenly_spaced(len(states))], dim=1)
        projection = _projection(z.shape[1])
        if not features.numel():
            features = torch.empty(len(tokens), projection.shape[1])
        pooled[indices] = states[-1].cpu()
        features[indices] = torch.relu(z @ projection.to(z.device)).cpu()
    return FrozenFeatures(pooled, features)


def _evenly_spaced(count: int) -> list[int]:
    """Indices of MAX_LAYERS of `count` states at most, the first and the last included."""
    return [round(position) for position in np.linspace(0, count - 1, min(count, MAX_LAYERS)).tolist()]


@cache
def _projection(size: int) -> Tensor:
    """The matrix P [size, M]; NumPy guarantees the same draws of a `RandomState` in every release."""
    draw, projection = np.random.RandomState(SEED), np.empty((size, min(WIDTH_FACTOR * size, MAX_WIDTH)), np.float32)
    for row in projection:  # all rows at once take twice the memory of P, in float64
        row[:] = draw.standard_normal(len(row))
    return torch.from_numpy(projection)
