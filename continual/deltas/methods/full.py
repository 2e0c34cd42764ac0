"""Reference methods: full fine-tuning, of all layers or some, and a linear probe."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from continual.backbones.sites import OUTPUT_EMBEDDINGS
from continual.deltas.compose import Add
from continual.deltas.edit import BiasFilter, Edit, LayerFilter, PlaceFilter, RandomFilter, Reads, SiteFilter
from continual.deltas.forms import DenseDelta, EmbeddingDelta, Vector
from continual.deltas.method import MethodSettings, Sites
from continual.deltas.methods.layer_norm import norm_edits


class _WeightSettings(MethodSettings):
    """Settings of methods that train weights themselves.

    Attributes:
        exact_parameters: Whether the values are the model's own parameters: no new biases where a module has none, and
            one change for tables that the model ties. Otherwise every module of a site gets a bias, every table is
            changed for itself, and output embeddings are not.
    """

    exact_parameters: bool = True

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Add biases and leave output embeddings alone, as deltas of format 2 do."""
        return super().upgrade(settings, generates=generates) | {"exact_parameters": False}

    def _with_bias(self, where: PlaceFilter | None) -> PlaceFilter | None:
        return BiasFilter(where) if self.exact_parameters else where

    def dense_edits(self, where: PlaceFilter | None = None, site: str = "projections") -> tuple[Edit, ...]:
        """Return the edits y ← y + x ΔWᵀ + Δb, with ΔW [d_out, d_in] and Δb [d_out].

        Args:
            where: Choice among the site's places; all of them where it is None.
            site: a site or group of linear layers.
        """
        return (
            Edit(site, DenseDelta(), Reads.INPUT, Add(), where),
            Edit(site, Vector(0.0), Reads.OUTPUT, Add(), self._with_bias(where)),
        )

    def norm_edits(self, where: PlaceFilter | None = None) -> tuple[Edit, ...]:
        """Return the edits y ← m ⊙ y + c after every norm, with m and c [D].

        Args:
            where: Choice among the norms; all of them where it is None.
        """
        gain, bias = norm_edits(where)
        return gain, replace(bias, where=self._with_bias(where))


class Full(_WeightSettings):
    """Full fine-tuning as a delta: every weight W becomes W + ΔW, embeddings, biases and norms included.

    Norms are changed by factors and summands, which reach the same functions. Where a text is generated, the table that
    scores the next token is trained too; tables that the model ties remain one. Parameters: all of the backbone's.
    Howard and Ruder (2018), arXiv:1801.06146.

    >>> [edit.site for edit in Full().edits()]
    ['embeddings', 'projections', 'projections', 'norms', 'norms']
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return dense changes of embeddings, projections and biases, and the edits of the norms."""
        form = EmbeddingDelta(scaled=self.exact_parameters)
        where = None if self.exact_parameters else SiteFilter((OUTPUT_EMBEDDINGS,))
        tables = Edit("embeddings", form, Reads.INPUT, Add(), where, ties_values=self.exact_parameters)
        return (tables, *self.dense_edits(), *self.norm_edits())


class LastLayer(_WeightSettings):
    """Full fine-tuning of the topmost layers: y ← y + x ΔWᵀ + Δb at their projections, and their norms.

    Lee et al. (2019), "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", arXiv:1911.03090.

    Attributes:
        count: Number of layers.

    >>> LastLayer(count=2).edits()[0].where
    LayerFilter(numbers=(-1, -2))
    """

    count: int = Field(default=1, ge=1, le=1000)

    def edits(self) -> tuple[Edit, ...]:
        """Return dense changes of projections and biases, and the edits of the norms, of the topmost layers."""
        top = LayerFilter(tuple(range(-1, -self.count - 1, -1)))
        return (*self.dense_edits(top), *self.norm_edits(top))


class Selective(_WeightSettings):
    """Full fine-tuning of a random share of the modules of some sites: y ← y + x ΔWᵀ + Δb.

    With `share: 1` all modules of the sites are trained. These are the random and the named subsets with which Ben
    Zaken et al. (2022), arXiv:2106.10199, section 4.3, and Guo et al. (2021), arXiv:2012.07463, compare their methods.

    Attributes:
        sites: Sites or groups of linear layers.
        share: Fraction of the modules of each site, at least one module.
        seed: Seed of the draw.

    >>> [edit.site for edit in Selective(sites=("attn.q",), share=1).edits()]
    ['attn.q', 'attn.q']
    """

    sites: Sites = ("projections",)
    share: float = Field(default=0.1, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def edits(self) -> tuple[Edit, ...]:
        """Return dense changes of the modules drawn."""
        drawn = RandomFilter(self.share, self.seed)
        return tuple(edit for site in self.sites for edit in self.dense_edits(drawn, site))


class Probe(MethodSettings):
    """Linear probe: no edits; the head alone is trained, on frozen features.

    Peters et al. (2019), "To Tune or Not to Tune?", arXiv:1903.05987.

    >>> Probe().edits()
    ()
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return no edits."""
        return ()
