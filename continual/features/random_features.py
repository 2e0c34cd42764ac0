"""Random features of the frozen backbone that separate tasks: all layers, randomly projected.

    z = [h₀ / ‖h₀‖; …; h_L / ‖h_L‖]     φ(x) = max(P z, 0),  P_ij ~ N(0, 1)

h_l is a text's pooled state after layer l. Layers separate different properties, from words to sentences, and after the
random nonlinear projection a linear rule separates tasks that no rule linear in z can: McDonnell et al. (2023),
"RanPAC: Random Projections and Pre-trained Models for Continual Learning" (arXiv:2307.02251).

Shapes: N texts, D hidden size, L layers, M width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.backbones.readout import Readout
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
        readouts: The vectors [N, D] of further readouts.
    """

    pooled: Tensor
    random_features: Tensor
    readouts: Mapping[Readout, Tensor] = field(default_factory=dict)

    def take(self, indices: Sequence[int]) -> "FrozenFeatures":
        """Select texts by index."""
        return FrozenFeatures(self.pooled[indices], self.random_features[indices])


@torch.inference_mode()
def frozen_features(backbone: Backbone, tokens: Tokens, *, readouts: Sequence[Readout] = ()) -> FrozenFeatures:
    """Compute pooled and random features of N texts in one pass, on the CPU: [N, D] and [N, M].

    Args:
        backbone: The frozen backbone.
        tokens: Tokens of the texts.
        readouts: Further readouts to take on the way.
    """
    pooled, features = torch.empty(len(tokens), backbone.hidden_size), torch.empty(len(tokens), 0)
    read = {readout: torch.empty(len(tokens), backbone.hidden_size) for readout in readouts}
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
        for readout, vectors in _read(backbone, batch, layers, readouts):
            read[readout][indices] = vectors.cpu()
    return FrozenFeatures(pooled, features, read)


def _read(
    backbone: Backbone, batch: dict[str, Tensor], layers: Sequence[Tensor], readouts: Sequence[Readout]
) -> Iterator[tuple[Readout, Tensor]]:
    """Yield the vectors [B, D] of each readout of a batch, from the states [B, T, D] after each layer."""
    by_depth: dict[int | None, Tensor] = {None: layers[-1]}
    for readout in readouts:
        if readout.layers not in by_depth:
            assert readout.layers is not None
            with backbone.autocast():
                by_depth[readout.layers] = backbone.states_behind(batch, layers[readout.layers])
        yield readout, pool(by_depth[readout.layers], batch["attention_mask"], readout.pooling)


def candidate_readouts(backbone: Backbone) -> tuple[Readout, ...]:
    """Return the readouts among which a causal backbone's is chosen: the last token and the mean, at some depths.

    The depths are those of the random features. For any other backbone it is the declared one alone.
    """
    if backbone.architecture != "causal":
        return (backbone.readout,)
    last = backbone.num_layers
    depths = [None if layers == last else layers for layers in _evenly_spaced(last + 1) if layers]
    return tuple(Readout(pooling, layers) for layers in depths for pooling in ("last", "mean"))


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
