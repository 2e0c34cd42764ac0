"""LoRA: a low-rank change of projections, and its tensors in PEFT.

Shapes: D inputs and E outputs of a module, R rank, n parts (projections) in one module.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from continual.deltas.compose import Add
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import LowRank
from continual.deltas.method import MethodSettings, Preset
from continual.deltas.methods.pissa import PrincipalLowRank
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.errors import ExchangeError

Scaling = Literal["standard", "rank_stabilized"]


def scale_divisor(rank: int, scaling: Scaling) -> float:
    """Return what alpha is divided by: the rank, or its square root in a rank-stabilised LoRA.

    Kalajdzievski (2023), "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732: with alpha
    divided by √R instead of R, neither outputs nor gradients vanish as the rank grows.

    >>> scale_divisor(16, "standard"), scale_divisor(16, "rank_stabilized")
    (16, 4.0)
    """
    return math.sqrt(rank) if scaling == "rank_stabilized" else rank


class LoRA(MethodSettings):
    """LoRA: y ← y + s · x Aᵀ Bᵀ at every projection of the blocks, or at some sites; s = alpha / rank by default.

    Parameters: rank · (d_in + d_out) per projection. Hu et al. (2022), arXiv:2106.09685, edit query and value only;
    Dettmers et al. (2023), "QLoRA", arXiv:2305.14314, find that full fine-tuning is only reached
    with every projection.

    Attributes:
        rank: R.
        alpha: Numerator of the scale s.
        sites: Sites or groups of linear layers.
        scaling: `standard`, s = alpha / R, or `rank_stabilized`, s = alpha / √R (Kalajdzievski 2023).
        init: `zero`, A drawn and B zero, or `pissa`, both at the R principal components of the weight (Meng et al.
            2024, `continual.deltas.methods.pissa`). A delta of the latter is stored as a LoRA of rank 2R, twice the
            parameters.

    >>> [edit.site for edit in LoRA(rank=4, sites=("attn.q", "attn.v")).edits()]
    ['attn.q', 'attn.v']
    """

    PRESETS: ClassVar[Mapping[str, Preset]] = {"paper": {"rank": 8, "alpha": 8.0, "sites": ("attn.q", "attn.v")}}

    rank: int = Field(default=8, ge=1, le=4096)
    alpha: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    sites: tuple[str, ...] = Field(default=("projections",), min_length=1)
    scaling: Scaling = "standard"
    init: Literal["zero", "pissa"] = "zero"

    @property
    def scale(self) -> float:
        """The factor s of the change."""
        return self.alpha / scale_divisor(self.rank, self.scaling)

    def edits(self) -> tuple[Edit, ...]:
        """Return one low-rank edit per site."""
        form = LowRank(self.rank) if self.init == "zero" else PrincipalLowRank(self.rank, self.scale)
        return tuple(Edit(site, form, Reads.INPUT, Add(self.scale)) for site in self.sites)

    def to_peft(self, parts: Sequence[PlacedModule], values: Values) -> PeftAdapter:
        """Convert to PEFT's LoRA tensors, as `low_rank_to_peft` describes; of rank 2R after `init: pissa`."""
        if self.init == "zero":
            return low_rank_to_peft(parts, values, rank=self.rank, alpha=self.alpha, scaling=self.scaling)
        form = PrincipalLowRank(self.rank, self.scale)
        final: dict[str, Tensor] = {}
        for part in parts:
            names = [key for key in values if key.rpartition("/")[0] == part.key]
            part_values = form.finalize({key.rpartition("/")[2]: values[key] for key in names}, part.place)
            final |= {f"{part.key}/{name}": value for name, value in part_values.items()}
        alpha = self.alpha * scale_divisor(2 * self.rank, self.scaling) / scale_divisor(self.rank, self.scaling)
        return low_rank_to_peft(parts, final, rank=2 * self.rank, alpha=alpha, scaling=self.scaling)

    @classmethod
    def from_peft(cls, adapter: PeftAdapter, layout: ModuleLayout) -> tuple[Self, dict[str, Tensor]] | None:
        """Convert a LoRA adapter without `use_dora`; None for any other.

        Returns:
            Settings, and A [R, D] and B [d_out, R] of each part, by key; zero at modules without tensors.

        Raises:
            ExchangeError: Other tensors or settings.
        """
        if adapter.config.get("peft_type") != "LORA" or adapter.config.get("use_dora"):
            return None
        shapes, sites = low_rank_shapes(adapter, layout.parts(cls())), layout.sites(adapter.module_names())
        adapter.require_tensors(shapes)
        settings, values = low_rank_from_peft(adapter, layout.parts(cls(sites=sites)))
        return cls.model_validate({**settings, "sites": sites}), values


# PEFT's initialisations that leave the base model's weights as they are, and those that change them.
INIT_OF_FACTORS = ("true", "false", "none", "gaussian", "eva", "orthogonal", "mica")
INIT_OF_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def require_unchanged_base(adapter: PeftAdapter) -> None:
    """Raise ExchangeError where the adapter's start changed the weights of the base model, or is not known.

    A and B alone then do not give the change: the function of the adapter is that of other base weights.

    Raises:
        ExchangeError: By `init_lora_weights`, the base was changed, or may have been.
    """
    init = adapter.config.get("init_lora_weights")
    name = str(init).lower()
    if name in INIT_OF_FACTORS:
        return
    reason = (
        "changed the weights of the base model too, so that A and B are no change of the original weights"
        if name.startswith(INIT_OF_BASE)
        else "is not known, so it may have changed the weights of the base model too"
    )
    raise ExchangeError(
        f"the adapter's start, init_lora_weights {init!r}, {reason}; allowed: true, false, gaussian, eva, orthogonal, "
        "mica. Save it as a plain LoRA first (PEFT: "
        "save_pretrained(…, path_initial_model_for_weight_conversion=…), which writes init_lora_weights true)"
    )


def low_rank_to_peft(
    parts: Sequence[PlacedModule], values: Values, *, rank: int, alpha: float, scaling: Scaling
) -> PeftAdapter:
    """Convert A [R, D] and B [d_out, R] of every part to PEFT's tensors, one pair per module.

    A module of n parts gets the parts' A, one below the other [nR, D], and a B [E, nR] with one block per part.

    Args:
        parts: Every edit at every place.
        values: `A` and `B` of each part, by key.
        rank: R.
        alpha: Numerator of the scale.
        scaling: The scale's denominator, as in `LoRA`.
    """
    tensors: dict[str, Tensor] = {}
    part_counts: dict[str, int] = {}  # of modules with several parts
    for module, module_parts in by_module(parts).items():
        b = torch.zeros(module_parts[0].outputs, len(module_parts) * rank)
        for number, part in enumerate(module_parts):
            b[part.rows, number * rank : (number + 1) * rank] = values[f"{part.key}/B"]
        tensors[f"{MODULE_PREFIX}{module}.lora_A.weight"] = torch.cat(
            [values[f"{part.key}/A"] for part in module_parts]
        )
        tensors[f"{MODULE_PREFIX}{module}.lora_B.weight"] = b
        part_counts |= {module: len(module_parts)} if len(module_parts) > 1 else {}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(part.place.output_module, Conv1D) for part in parts),
        "target_modules": list(by_module(parts)),
        "rank_pattern": {module: n * rank for module, n in part_counts.items()},
        "alpha_pattern": {module: scale_divisor(n, scaling) * alpha for module, n in part_counts.items()},
        **({"use_rslora": True} if scaling == "rank_stabilized" else {}),
    }
    return PeftAdapter(config, tensors)


def low_rank_shapes(adapter: PeftAdapter, projections: Sequence[PlacedModule]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that an adapter's tensors must have, by PEFT's names: A [R, D] and B [E, R].

    They are those of modules that the adapter has a tensor of, and of modules that its config targets. It changes
    nothing at the others, such as those outside `layers_to_transform`.

    Args:
        adapter: The adapter.
        projections: All projections of the backbone.

    Raises:
        ExchangeError: The adapter is more than a plain low-rank change.
    """
    require_unchanged_base(adapter)
    adapter.require_supported_config("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "init_lora_weights")
    present = set(adapter.module_names())
    shapes: dict[str, tuple[int, ...]] = {}
    for module, module_parts in by_module(projections).items():
        if module in present or adapter.targets(module):
            rank, _ = _rank_and_scale(adapter.config, module)
            shapes[f"{MODULE_PREFIX}{module}.lora_A.weight"] = (rank, module_parts[0].place.d_in)
            shapes[f"{MODULE_PREFIX}{module}.lora_B.weight"] = (module_parts[0].outputs, rank)
    return shapes


def low_rank_from_peft(adapter: PeftAdapter, parts: Sequence[PlacedModule]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert PEFT's tensors to one rank and scale for all parts.

    Smaller ranks are padded with zeros, B is rescaled where a module's scale differs from the largest one, and both
    are zero at modules without tensors.

    Args:
        adapter: With tensors of the shapes of `low_rank_shapes`.
        parts: Every edit at every place.

    Returns:
        The settings rank R, alpha and scaling; and the values A [R, D] and B [d_out, R] of each part, by key.
    """
    low_rank = {}
    for module, module_parts in by_module(parts).items():
        if f"{MODULE_PREFIX}{module}.lora_A.weight" not in adapter.tensors:
            continue
        a, b = (adapter.tensors[f"{MODULE_PREFIX}{module}.lora_{name}.weight"].float() for name in "AB")
        for part in module_parts:
            used = (b[part.rows] != 0).any(dim=0) | (len(module_parts) == 1)  # each of several parts uses its own block
            low_rank[part.key] = (a[used], b[part.rows][:, used], _rank_and_scale(adapter.config, module)[1])
    rank = max(1, *(len(a) for a, _, _ in low_rank.values()))
    scale = max(abs(part_scale) for _, _, part_scale in low_rank.values()) or 1.0  # all zero: B becomes zero
    values = {}
    for part in parts:
        values[f"{part.key}/A"] = torch.zeros(rank, part.place.d_in)
        values[f"{part.key}/B"] = torch.zeros(part.place.d_out, rank)
        if part.key in low_rank:
            a, b, part_scale = low_rank[part.key]
            values[f"{part.key}/A"][: len(a)] = a
            values[f"{part.key}/B"][:, : len(a)] = b * (part_scale / scale)
    scaling: Scaling = "rank_stabilized" if adapter.config.get("use_rslora") else "standard"
    divisor, alpha = scale_divisor(rank, scaling), float(adapter.config["lora_alpha"])
    return {"rank": rank, "alpha": alpha if alpha / divisor == scale else scale * divisor, "scaling": scaling}, values


def _rank_and_scale(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return rank and scale of a module: rank and alpha each of the first of its own patterns that matches.

    As in `peft.utils.other.get_pattern_key`, which PEFT calls once for `rank_pattern` and once for `alpha_pattern`.
    """
    rank = int(_first_match(config.get("rank_pattern"), module, config["r"]))
    alpha = float(_first_match(config.get("alpha_pattern"), module, config["lora_alpha"]))
    return rank, alpha / scale_divisor(rank, "rank_stabilized" if config.get("use_rslora") else "standard")


def _first_match(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    matching = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matching, default)
