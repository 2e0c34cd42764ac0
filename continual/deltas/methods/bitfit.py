"""BitFit: only biases are changed."""

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings


class BitFit(MethodSettings):
    """BitFit: y ← y + b after every projection and norm, a change of its bias or a new bias.

    Parameters: one per output of each module. Ben Zaken et al. (2022), "BitFit", arXiv:2106.10199.

    >>> [edit.site for edit in BitFit().edits()]
    ['projections', 'norms']
    """

    def edits(self) -> tuple[Edit, ...]:
        """Return one added vector per projection and per norm."""
        return tuple(Edit(site, Vector(0.0), Reads.OUTPUT, Add()) for site in ("projections", "norms"))
