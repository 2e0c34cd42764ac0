"""One change at one site: what function, of what, put together how.

After He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366): a method
is the function that changes a hidden state, what it reads, which state it modifies, and how the two are composed.
With x what enters a site and y what leaves it,

    y  ←  compose(y, form(values, x or y))
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from continual.backbones.sites import Place
from continual.deltas.compose import Compose
from continual.deltas.protocols import Form
from continual.errors import MethodError


class Reads(Enum):
    """What an edit's function is given: what enters the site (parallel), or what leaves it (sequential)."""

    INPUT = "input"
    OUTPUT = "output"


class PlaceFilter(Protocol):
    """Which of the places of a site an edit is put at."""

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]: ...


@dataclass(frozen=True)
class LayerFilter:
    """The places of some layers: numbers from 0 at the bottom, or from −1 at the top of each stack."""

    numbers: tuple[int, ...]

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        layers = max(place.layers for place in places)
        if outside := [number for number in self.numbers if not -layers <= number < layers]:
            raise MethodError(
                f"layers {outside} are not there: the backbone has {layers}, numbered 0 to {layers - 1} from below "
                f"or -1 to {-layers} from above"
            )
        return [place for place in places if place.layer is not None and self._among(place.layer, place.layers)]

    def _among(self, layer: int, layers: int) -> bool:
        return layer in self.numbers or layer - layers in self.numbers


@dataclass(frozen=True)
class RandomFilter:
    """A share of the places, at least one, drawn by `seed`: the same on every machine."""

    share: float
    seed: int

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        def rank(place: Place) -> str:
            return hashlib.sha256(f"{self.seed}/{place.name}".encode()).hexdigest()

        drawn = {place.name for place in sorted(places, key=rank)[: max(1, round(self.share * len(places)))]}
        return [place for place in places if place.name in drawn]


@dataclass(frozen=True)
class Edit:
    """One change at every place of a site, or of a group of sites.

    choice: which of the places; all where it is None · stages: when it is trained, all else fixed; a form that
    finishes does so after the first of them · added_tokens: how many tokens longer it makes an input, as far as
    positions go · optional: whether a family that lacks the site does without the edit.
    """

    site: str
    form: Form
    reads: Reads
    compose: Compose
    where: PlaceFilter | None = None
    stages: tuple[int, ...] = (0,)
    added_tokens: int = 0
    optional: bool = False
