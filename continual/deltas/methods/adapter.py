"""Adapters: small bottleneck networks after a projection or beside a block.

Shapes: D width of a hidden state, M size of a bottleneck.
"""

from typing import Literal

from pydantic import Field

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Activation, Bottleneck
from continual.deltas.method import MethodSettings
from continual.deltas.methods.layer_norm import norm_edits


class Adapter(MethodSettings):
    """Adapter: y ← y + W_up f(W_down y + b_down) + b_up after attention and after feed-forward.

    The adapter follows the last projection of each block, and is computed before dropout, residual and norm; the norms
    are trained too. Parameters: 2MD + D + M per adapter and 2D per norm. Houlsby et al. (2019), arXiv:1902.00751.

    Attributes:
        size: M.
        initial_scale: Deviation of the normal from which the weights are drawn.
        activation: f.

    >>> [edit.site for edit in Adapter(size=16).edits()]
    ['attn.out', 'ffn.out', 'norms', 'norms']
    """

    size: int = Field(default=64, ge=1, le=4096)
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "gelu"

    def edits(self) -> tuple[Edit, ...]:
        """Return two sequential bottlenecks per layer, and the edits of the norms."""
        form = Bottleneck(self.size, self.initial_scale, self.activation)
        return (*(Edit(site, form, Reads.OUTPUT, Add()) for site in ("attn.out", "ffn.out")), *norm_edits())


class PfeifferAdapter(MethodSettings):
    """Pfeiffer adapter: y ← y + W_up f(W_down y + b_down) + b_up after the feed-forward only.

    The adapter follows the last projection of the feed-forward; norms are frozen.
    Parameters: 2MD + D + M per layer. Pfeiffer et al. (2021), "AdapterFusion", arXiv:2005.00247, who selected this
    among all places and orders on held-out data.

    Attributes:
        size: M.
        initial_scale: Deviation of the normal from which the weights are drawn.
        activation: f.

    >>> [edit.site for edit in PfeifferAdapter().edits()]
    ['ffn.out']
    """

    size: int = Field(default=64, ge=1, le=4096)
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"

    def edits(self) -> tuple[Edit, ...]:
        """Return one sequential bottleneck per layer."""
        return (Edit("ffn.out", Bottleneck(self.size, self.initial_scale, self.activation), Reads.OUTPUT, Add()),)


class ParallelAdapter(MethodSettings):
    """Parallel adapter: y ← y + s · (W_up f(W_down x + b_down) + b_up) beside a block.

    The block, an attention or a feed-forward, has input x and output y.
    Parameters: 2MD + D + M per block. He et al. (2022), arXiv:2110.04366: beside the feed-forward and scaled by 4 it is
    their best single method, and starts without effect, as LoRA does. Unscaled it is the adapter of Zhu et al. (2021),
    arXiv:2104.08154.

    Attributes:
        size: M.
        scale: s.
        blocks: The blocks of each layer with an adapter.
        initial_scale: Deviation of the normal from which the weights are drawn; None for W_up = 0, no change.
        activation: f.

    >>> ParallelAdapter(blocks=("attn", "ffn"), scale=1).edits()[0].site
    'attn'
    """

    size: int = Field(default=64, ge=1, le=4096)
    scale: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    blocks: tuple[Literal["attn", "ffn"], ...] = Field(default=("ffn",), min_length=1)
    initial_scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"

    def edits(self) -> tuple[Edit, ...]:
        """Return one parallel bottleneck per block."""
        form = Bottleneck(self.size, self.initial_scale, self.activation)
        return tuple(Edit(block, form, Reads.INPUT, Add(self.scale)) for block in self.blocks)
