"""The tensors of LoRA and DoRA in PEFT's adapters.

Shapes: D inputs and E outputs of a module, R rank, n parts (projections) in one module.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from continual.deltas.forms import Scaling, scale_divisor
from continual.deltas.methods.module_peft import block_columns, is_transposed, modules_to_peft, part_counts
from continual.deltas.peft_format import MODULE_PREFIX, PeftAdapter, PlacedModule, by_module
from continual.deltas.peft_patterns import first_match
from continual.deltas.protocols import Values
from continual.errors import ExchangeError

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
    counts = part_counts(parts)
    return modules_to_peft(
        parts,
        values,
        _factors_of_module,
        peft_type="LORA",
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=is_transposed(parts),
        rank_pattern={module: n * rank for module, n in counts.items()},
        alpha_pattern={module: scale_divisor(n, scaling) * alpha for module, n in counts.items()},
        **({"use_rslora": True} if scaling == "rank_stabilized" else {}),
    )


def _factors_of_module(parts: Sequence[PlacedModule], values: Sequence[Values]) -> dict[str, Tensor]:
    a, b = torch.cat([part["A"] for part in values]), block_columns(parts, [part["B"] for part in values])
    return {"lora_A.weight": a, "lora_B.weight": b}


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
    """Return rank and scale of a module: rank and alpha each of the first of its own patterns that matches."""
    rank = int(first_match(config.get("rank_pattern"), module, config["r"]))
    alpha = float(first_match(config.get("alpha_pattern"), module, config["lora_alpha"]))
    return rank, alpha / scale_divisor(rank, "rank_stabilized" if config.get("use_rslora") else "standard")
