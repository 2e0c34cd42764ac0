"""(IA)³: keys, values and the feed-forward's inner states, each dimension scaled."""

from continual.deltas.edit import Edit, Multiply, Reads
from continual.deltas.forms import Vector
from continual.deltas.method import MethodSettings


class IA3(MethodSettings):
    """k ← l_k ⊙ k,  v ← l_v ⊙ v,  and in the feed-forward W₂ (l_ff ⊙ f(W₁ x)); every l starts at one.

    Parameters: the widths of keys, of values and of the inner states, per layer. Liu et al. (2022), "Few-Shot
    Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", arXiv:2205.05638.

    >>> [edit.site for edit in IA3().edits()]
    ['attn.k', 'attn.v', 'ffn.inner']
    """

    def edits(self) -> tuple[Edit, ...]:
        sites = ("attn.k", "attn.v", "ffn.inner")
        return tuple(Edit(site, Vector(1.0), Reads.OUTPUT, Multiply()) for site in sites)
