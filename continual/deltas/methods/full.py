"""Reference methods: full fine-tuning, of all layers or some, and a linear probe."""

from pydantic import Field

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, LayerFilter, PlaceFilter, RandomFilter, Reads
from continual.deltas.forms import DenseDelta, EmbeddingDelta, Vector
from continual.deltas.method import MethodSettings
from continual.deltas.methods.layer_norm import norm_edits


def dense_edits(where: PlaceFilter | None = None, site: str = "projections") -> tuple[Edit, ...]:
    """Return the edits y ← y + x ΔWᵀ + Δb, with ΔW [d_out, d_in] and Δb [d_out].

    Args:
        where: Choice among the site's places; all of them where it is None.
        site: a site or group of linear layers.
    """
    return (
        Edit(site, DenseDelta(), Reads.INPUT, Add(), where),
        Edit(site, Vector(0.0), Reads.OUTPUT, Add(), where),
    )


class Full(MethodSettings):
    """Full fine-tuning as a delta: every weight W becomes W + ΔW, embeddings, biases and norms included.

    Norms are changed by factors and summands, which reach the same functions. Parameters: all of the backbone's, and
    biases where it has none. Howard and Ruder (2018), arXiv:1801.06146.

    >>> [edit.site for edit in Full().edits()]
    ['embeddings', 'projections', 'projections', 'norms', 'norms']
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return dense changes of embeddings, projections and biases, and the edits of the norms."""
        return (Edit("embeddings", EmbeddingDelta(), Reads.INPUT, Add()), *dense_edits(), *norm_edits())


class LastLayer(MethodSettings):
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
        return (*dense_edits(top), *norm_edits(top))


class Selective(MethodSettings):
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

    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)
    share: float = Field(default=0.1, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    def edits(self) -> tuple[Edit, ...]:
        """Return dense changes of the modules drawn."""
        drawn = RandomFilter(self.share, self.seed)
        return tuple(edit for site in self.sites for edit in dense_edits(drawn, site))


class Probe(MethodSettings):
    """Linear probe: no edits; the head alone is trained, on frozen features.

    Peters et al. (2019), "To Tune or Not to Tune?", arXiv:1903.05987.

    >>> Probe().edits()
    ()
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return no edits."""
        return ()
