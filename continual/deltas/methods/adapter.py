"""Adapters: small bottleneck networks after a projection or beside a block.

Shapes: D width of a hidden state, M size of a bottleneck.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Activation, Bottleneck
from continual.deltas.method import MethodSettings, Preset, Scale
from continual.deltas.methods.layer_norm import norm_edits

Block = Literal["attn", "self", "cross", "ffn"]
"""A block of a layer: any attention, self-attention, cross-attention, or the feed-forward."""


class Adapter(MethodSettings):
    """Adapter: y ← y + A(y), A(y) = W_up f(W_down y + b_down) + b_up, after attention and after feed-forward.

    The adapter follows the last projection of each block, and is computed before dropout, residual and norm; the norms
    are trained too. Parameters: 2MD + D + M per adapter and 2D per norm. Houlsby et al. (2019), arXiv:1902.00751.

    Attributes:
        size: M.
        blocks: The blocks of each layer with an adapter.
        initial_scale: Deviation of the normal from which the weights are drawn.
        activation: f.

    >>> [edit.site for edit in Adapter(size=16).edits()]
    ['attn.out', 'ffn.out', 'norms', 'norms']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {}, "delta_tuning": {"size": 64, "activation": "silu"}}

    size: int = Field(default=64, ge=1, le=4096)
    blocks: tuple[Block, ...] = Field(default=("attn", "ffn"), min_length=1)
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "gelu"

    def edits(self) -> tuple[Edit, ...]:
        """Return one sequential bottleneck per block, and the edits of the norms."""
        form = Bottleneck(self.size, self.initial_scale, self.activation)
        return (*(Edit(f"{block}.out", form, Reads.OUTPUT, Add()) for block in self.blocks), *norm_edits())


class PfeifferAdapter(MethodSettings):
    """Pfeiffer adapter: y ← y + A(N(r + y)) at the feed-forward, behind the residual stream r and its norm N.

    The layer's output is N(r + y + A(N(r + y))), and r + y + A(r + y) in families that normalise before a block.
    A(h) = W_up f(W_down h + b_down) + b_up; norms are frozen. Parameters: 2MD + D + M per layer.
    Pfeiffer et al. (2021), "AdapterFusion", arXiv:2005.00247, who selected this among all places and orders on held-out
    data; their code is the library adapters (`original_ln_before`).

    Attributes:
        size: M.
        blocks: The blocks of each layer with an adapter.
        reads: The input of A: the residual stream behind the block, or the block's output y alone.
        initial_scale: Deviation of the normal from which the weights are drawn.
        activation: f.

    >>> [edit.site for edit in PfeifferAdapter().edits()]
    ['ffn']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"size": 48}}

    size: int = Field(default=64, ge=1, le=4096)
    blocks: tuple[Block, ...] = Field(default=("ffn",), min_length=1)
    reads: Literal["residual", "output"] = "residual"
    initial_scale: float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Read the feed-forward's output, as deltas of format 2 do."""
        return super().upgrade(settings, generates=generates) | {"reads": "output"}

    def edits(self) -> tuple[Edit, ...]:
        """Return one bottleneck per block."""
        form = Bottleneck(self.size, self.initial_scale, self.activation)
        if self.reads == "output":
            return tuple(Edit(f"{block}.out", form, Reads.OUTPUT, Add()) for block in self.blocks)
        return tuple(Edit(block, form, Reads.RESIDUAL_BEHIND, Add()) for block in self.blocks)


class ParallelAdapter(MethodSettings):
    """Parallel adapter: y ← y + s · (W_up f(W_down r + b_down) + b_up) beside a block.

    The block, an attention or a feed-forward, has output y, and r is the residual stream in front of it: its input, or
    what its norm takes in families that normalise before a block. Parameters: 2MD + D + M per block.
    He et al. (2022), arXiv:2110.04366: beside the feed-forward and scaled by 4 it is
    their best single method, and starts without effect, as LoRA does. Unscaled it is the adapter of Zhu et al. (2021),
    arXiv:2104.08154.

    Attributes:
        size: M.
        scale: s.
        blocks: The blocks of each layer with an adapter.
        reads: The input of the adapter: the residual stream r, or the block's input, which is the norm of r in families
            that normalise before a block (Hu et al. 2023, "LLM-Adapters", arXiv:2304.01933).
        initial_scale: Deviation of the normal from which the weights are drawn; None for W_up = 0, no change.
        activation: f.

    >>> ParallelAdapter(blocks=("attn", "ffn"), scale=1).edits()[0].site
    'attn'
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"size": 512, "scale": 4.0}}

    size: int = Field(default=64, ge=1, le=4096)
    scale: Scale = 4.0
    blocks: tuple[Block, ...] = Field(default=("ffn",), min_length=1)
    reads: Literal["residual", "input"] = "residual"
    initial_scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    activation: Activation = "relu"

    @classmethod
    def upgrade(cls, settings: Mapping[str, Any], *, generates: bool) -> dict[str, Any]:
        """Read the block's input, as deltas of format 2 do."""
        return super().upgrade(settings, generates=generates) | {"reads": "input"}

    def edits(self) -> tuple[Edit, ...]:
        """Return one parallel bottleneck per block."""
        form = Bottleneck(self.size, self.initial_scale, self.activation)
        reads = Reads.RESIDUAL_BEFORE if self.reads == "residual" else Reads.INPUT
        return tuple(Edit(block, form, reads, Add(self.scale)) for block in self.blocks)
