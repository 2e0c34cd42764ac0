"""The truncated singular value decomposition of a frozen weight, kept for the next delta of the same backbone.

Shapes: W [E, D] the weight of a projection, R rank.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from continual.backbones.sites import Place

MIN_RELATIVE_SIZE = 1e-7  # of a singular value by which vectors are divided: below it is rounding

Decomposition = tuple[Tensor, Tensor, Tensor]
_DECOMPOSITIONS: WeakKeyDictionary[Any, dict[tuple[object, ...], Decomposition]] = WeakKeyDictionary()
"""By module, one decomposition of its weight, or of the weight of each of its parts, of the largest rank so far."""


@torch.inference_mode(False)  # a cached inference tensor would be an error in training
def truncated_svd(place: Place, rank: int, device: torch.device) -> Decomposition:
    """Compute the R largest singular values of a place's weight with their vectors; cached.

    Of each pair of vectors, the largest entry of the right one is positive, so that the result is the same on every
    machine but for rounding. A smaller rank has the first ones of a larger rank.

    Args:
        place: Its weight is W [E, D].
        rank: R; where it is above the smaller dimension of W, that is taken.
        device: Where the result is put.

    Returns:
        U_R [E, R], the diagonal of Σ_R [R], and V_Rᵀ [R, D].
    """
    cache, key = _DECOMPOSITIONS.setdefault(place.input_module, {}), (place.columns and place.columns.start, device)
    rank = min(rank, place.d_in, place.d_out)
    if key not in cache or len(cache[key][1]) < rank:
        cache[key] = _decompose(place, rank, device)
    left_vectors, sizes, right_vectors = cache[key]
    return left_vectors[:, :rank], sizes[:rank], right_vectors[:rank]


@torch.no_grad()
def _decompose(place: Place, rank: int, device: torch.device) -> Decomposition:
    """Compute in float64, from the eigenvectors of the smaller of Wᵀ W and W Wᵀ."""
    weight = place.weight.detach()
    weight = weight.cpu() if weight.device.type == "mps" else weight  # which has no float64
    tall = weight.double() if place.d_out >= place.d_in else weight.double().T
    values, vectors = torch.linalg.eigh(tall.T @ tall)
    sizes, narrow = values[-rank:].flip(0).clamp_min(0).sqrt(), vectors[:, -rank:].flip(1)
    wide = tall @ narrow / sizes.clamp_min(MIN_RELATIVE_SIZE * sizes[0]).clamp_min(torch.finfo(sizes.dtype).tiny)
    left_vectors, right_vectors = (wide, narrow) if place.d_out >= place.d_in else (narrow, wide)
    signs = right_vectors.gather(0, right_vectors.abs().argmax(dim=0, keepdim=True)).sign()
    left_vectors, sizes, right_vectors = (
        part.float().contiguous().to(device) for part in (left_vectors * signs, sizes, (right_vectors * signs).T)
    )
    return left_vectors, sizes, right_vectors
