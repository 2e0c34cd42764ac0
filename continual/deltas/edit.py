"""One edit: a change of one representation, described along the four axes of the unified view.

He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366), describe every
method by four independent choices. With x the input of a site and y its output, an edit is

    y  ←  compose(y, form(values, x or y))

    site      the representation that is modified           `continual.backbones.sites`
    form      the function that computes the change         `continual.deltas.protocols`, `continual.deltas.forms`
    reads     its input: x (parallel), y (sequential), or
              the residual stream before or behind a block  `Reads`, here
    compose   the operation that joins output and change    `continual.deltas.compose`

A method is a tuple of such edits (`continual.deltas.method`). LoRA, for example, is
`Edit("projections", LowRank(8), Reads.INPUT, Add(1.0))`: y ← y + x Aᵀ Bᵀ at every projection.
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
    """The input of an edit's form.

    A block's output y is added to the residual stream r, which a norm N takes before (pre-norm) or behind it.

    Attributes:
        INPUT: The input x of the site: parallel to it.
        OUTPUT: Its output y: in series with it.
        RESIDUAL_BEFORE: The residual stream r in front of a block; x = N(r) in pre-norm families, and x = r elsewhere.
        RESIDUAL_BEHIND: The residual stream behind a block: r + y, or N(r + y) in post-norm families.
    """

    INPUT = "input"
    OUTPUT = "output"
    RESIDUAL_BEFORE = "residual before"
    RESIDUAL_BEHIND = "residual behind"

    @property
    def is_residual(self) -> bool:
        """True where it is the residual stream, which blocks alone have."""
        return self in (Reads.RESIDUAL_BEFORE, Reads.RESIDUAL_BEHIND)


class PlaceFilter(Protocol):
    """A choice of some of the places of a site."""

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the chosen places, in their order."""
        ...


@dataclass(frozen=True)
class LayerFilter:
    """The places of some layers.

    Attributes:
        numbers: Layers, counted from 0 at the bottom or from −1 at the top of each stack.
    """

    numbers: tuple[int, ...]

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the places of these layers.

        Raises:
            MethodError: a layer is not there.
        """
        layers = max(place.num_layers for place in places)
        if outside := [number for number in self.numbers if not -layers <= number < layers]:
            raise MethodError(
                f"layers {outside} are not there: the backbone has {layers}, numbered 0 to {layers - 1} from below "
                f"or -1 to {-layers} from above"
            )
        return [place for place in places if place.layer is not None and self._includes(place.layer, place.num_layers)]

    def _includes(self, layer: int, layers: int) -> bool:
        return layer in self.numbers or layer - layers in self.numbers


@dataclass(frozen=True)
class SiteFilter:
    """The places of a group of sites, without those of some.

    Attributes:
        excluded: Names of the sites that are left out.
    """

    excluded: tuple[str, ...]

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the places of the other sites."""
        return [place for place in places if place.site not in self.excluded]


@dataclass(frozen=True)
class BiasFilter:
    """The places whose modules have a bias.

    Attributes:
        among: Choice among the places beforehand, if any.
    """

    among: PlaceFilter | None = None

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the places with a bias."""
        return [place for place in (self.among(places) if self.among else places) if place.bias is not None]


@dataclass(frozen=True)
class RandomFilter:
    """A random share of the places, at least one; the draw is the same on every machine.

    Attributes:
        share: Fraction of the places, in (0, 1].
        seed: Seed of the draw.
    """

    share: float
    seed: int

    def __call__(self, places: Sequence[Place]) -> Sequence[Place]:
        """Return the places drawn, in their order."""

        def rank(place: Place) -> str:
            return hashlib.sha256(f"{self.seed}/{place.name}".encode()).hexdigest()

        drawn = {place.name for place in sorted(places, key=rank)[: max(1, round(self.share * len(places)))]}
        return [place for place in places if place.name in drawn]


@dataclass(frozen=True)
class Edit:
    """One change at every place of a site, or of a group of sites.

    Attributes:
        site: The site or group of sites, such as `attn.q` or `projections`.
        form: The function that computes the change.
        reads: The form's input.
        compose: The operation that joins output and change.
        where: The choice among the site's places; all of them where it is None.
        stages: The stages of training in which the edit is trained, all else fixed; a form with final values
            (`HasFinalForm`) takes them after the first of these stages.
        added_tokens: Number of the backbone's positions that the edit takes from the text.
        optional: Whether the edit is left out on a family without the site; otherwise that is an error.
        ties_values: Whether places whose modules share one weight share values too, as word and output embeddings do
            in models that tie them.
    """

    site: str
    form: Form
    reads: Reads
    compose: Compose
    where: PlaceFilter | None = None
    stages: tuple[int, ...] = (0,)
    added_tokens: int = 0
    optional: bool = False
    ties_values: bool = False
