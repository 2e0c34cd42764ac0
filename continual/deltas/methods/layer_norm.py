"""Norms with another gain and bias: on their own a method, and a part of several."""

from continual.deltas.compose import Add, Multiply
from continual.deltas.edit import Edit, PlaceFilter, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings


def norm_edits(choice: PlaceFilter | None = None) -> tuple[Edit, ...]:
    """y ← m ⊙ y + c after every norm. Of y = γ ⊙ n + β it makes a norm of gain m ⊙ γ and bias m ⊙ β + c."""
    return (
        Edit("norms", Vector(1.0), Reads.OUTPUT, Multiply(), choice),
        Edit("norms", Vector(0.0), Reads.OUTPUT, Add(), choice),
    )


class LayerNorm(MethodSettings):
    """y ← m ⊙ y + c after every norm, and nothing else.

    Parameters: 2D per norm. Zhao et al. (2024), "Tuning LayerNorm in Attention", arXiv:2312.11420.

    >>> len(LayerNorm().edits())
    2
    """

    def edits(self) -> tuple[Edit, ...]:
        return norm_edits()
