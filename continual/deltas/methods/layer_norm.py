"""Tuned norms: gain and bias of every norm, as a method and as a part of other methods."""

from continual.deltas.compose import Add, Multiply
from continual.deltas.edit import Edit, PlaceFilter, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings


def norm_edits(where: PlaceFilter | None = None) -> tuple[Edit, ...]:
    """Return the edits y ← m ⊙ y + c after every norm, with m and c [D].

    A norm y = γ ⊙ n + β becomes one of gain m ⊙ γ and bias m ⊙ β + c.

    Args:
        where: Choice among the norms; all of them where it is None.
    """
    return (
        Edit("norms", Vector(1.0), Reads.OUTPUT, Multiply(), where),
        Edit("norms", Vector(0.0), Reads.OUTPUT, Add(), where),
    )


class LayerNorm(MethodSettings):
    """LayerNorm tuning: y ← m ⊙ y + c after every norm, and nothing else.

    Parameters: 2D per norm, D the width of a hidden state. Zhao et al. (2024), "Tuning LayerNorm in Attention",
    arXiv:2312.11420.

    >>> len(LayerNorm().edits())
    2
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return a factor and a summand per norm."""
        return norm_edits()
