"""BitFit: only the biases change."""

from typing import ClassVar, Literal

from continual.deltas.edit import Add, Edit, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings


class BitFit(MethodSettings):
    """y ← y + b at every linear layer and norm of the blocks: a change of the biases that are there.

    Parameters: the number of biases in the blocks. Ben Zaken et al. (2022), "BitFit", arXiv:2106.10199.

    >>> len(BitFit().edits())
    8
    """

    start: ClassVar[Literal["exact", "near"]] = "exact"

    def edits(self) -> tuple[Edit, ...]:
        sites = ("attn.q", "attn.k", "attn.v", "attn.out", "norm.attn", "ffn.in", "ffn.out", "norm.ffn")
        return tuple(Edit(site, Vector(0.0), Reads.OUTPUT, Add()) for site in sites)
