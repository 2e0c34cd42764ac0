"""Every weight changed, or none, or those of some layers or modules: what the small methods are measured against."""

from pydantic import Field

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, LayerFilter, PlaceFilter, RandomFilter, Reads
from continual.deltas.forms import DenseDelta, EmbeddingDelta, Vector
from continual.deltas.method import MethodSettings
from continual.deltas.methods.layer_norm import norm_edits


def dense_edits(choice: PlaceFilter | None = None, site: str = "projections") -> tuple[Edit, ...]:
    """y ← y + x ΔWᵀ + Δb at every projection, or at those of a site."""
    return (
        Edit(site, DenseDelta(), Reads.INPUT, Add(), choice),
        Edit(site, Vector(0.0), Reads.OUTPUT, Add(), choice),
    )


class Full(MethodSettings):
    """Full fine-tuning as a delta: every weight W becomes W + ΔW, embeddings, biases and norms among them.

    Norms are changed by factors and sums, which reach the same functions. Parameters: all of the backbone's, with
    biases where it has none. Howard and Ruder (2018), arXiv:1801.06146.

    >>> [edit.site for edit in Full().edits()]
    ['embeddings', 'projections', 'projections', 'norms', 'norms']
    """

    def edits(self) -> tuple[Edit, ...]:
        return (Edit("embeddings", EmbeddingDelta(), Reads.INPUT, Add()), *dense_edits(), *norm_edits())


class LastLayer(MethodSettings):
    """Every weight of the topmost `count` layers changed, and none below: y ← y + x ΔWᵀ + Δb, and their norms.

    Lee et al. (2019), "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning", arXiv:1911.03090.

    >>> LastLayer(count=2).edits()[0].choice
    Layers(numbers=(-1, -2))
    """

    count: int = Field(default=1, ge=1, le=1000)

    def edits(self) -> tuple[Edit, ...]:
        top = LayerFilter(tuple(range(-1, -self.count - 1, -1)))
        return (*dense_edits(top), *norm_edits(top))


class Selective(MethodSettings):
    """Some projections changed in full: y ← y + x ΔWᵀ + Δb at a share of the modules of `sites`, drawn by `seed`.

    With `share: 1` the sites named are taken whole. The random and the named subsets that Ben Zaken et al. (2022),
    arXiv:2106.10199, section 4.3, and Guo et al. (2021), arXiv:2012.07463, compare their own choices with.

    >>> [edit.site for edit in Selective(sites=("attn.q",), share=1).edits()]
    ['attn.q', 'attn.q']
    """

    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)
    share: float = Field(default=0.1, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def edits(self) -> tuple[Edit, ...]:
        drawn = RandomFilter(self.share, self.seed)
        return tuple(edit for site in self.sites for edit in dense_edits(drawn, site))


class Probe(MethodSettings):
    """Nothing of the backbone changed: the head alone is trained on frozen features.

    Peters et al. (2019), "To Tune or Not to Tune?", arXiv:1903.05987.

    >>> Probe().edits()
    ()
    """

    def edits(self) -> tuple[Edit, ...]:
        return ()
