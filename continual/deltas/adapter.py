"""Adapters: small bottleneck networks between the layers."""

from typing import ClassVar

from pydantic import Field

from continual.deltas.edit import Add, Edit, Multiply, Reads
from continual.deltas.forms import Bottleneck, Vector
from continual.deltas.method import MethodSettings, Start


class Adapter(MethodSettings):
    """y ← y + W_up GELU(W_down y + b_down) + b_up after the last projection of attention and of feed-forward.

    The sum stands before dropout, residual and norm, and the norms are trained too: a norm's output γ ⊙ n + β becomes
    m ⊙ (γ ⊙ n + β) + c, which is again a norm, of gain m ⊙ γ and bias m ⊙ β + c.
    Parameters: 2MD + D + M per adapter and 2D per norm. Houlsby et al. (2019), arXiv:1902.00751.

    >>> len(Adapter(size=16).edits())
    6
    """

    start: ClassVar[Start] = "near"

    size: int = Field(default=64, ge=1, le=4096)
    initial_scale: float = Field(default=1e-2, ge=0, allow_inf_nan=False)

    def edits(self) -> tuple[Edit, ...]:
        bottleneck = Bottleneck(self.size, self.initial_scale)
        adapters = tuple(Edit(site, bottleneck, Reads.OUTPUT, Add()) for site in ("attn.out", "ffn.out"))
        norms = tuple(
            Edit(site, Vector(initial), Reads.OUTPUT, compose)
            for site in ("norm.attn", "norm.ffn")
            for initial, compose in ((1.0, Multiply()), (0.0, Add()))
        )
        return adapters + norms
