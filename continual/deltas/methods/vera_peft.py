"""The random projections of VeRA in PEFT's adapters: one pair A and B for all modules.

Shapes: D inputs and E outputs of a projection, R rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from continual.deltas.methods.peft_configs import VeRAConfig
from continual.deltas.methods.vera_forms import ScaledRandomProjections, StoredProjections, draw_projections, rows_of
from continual.deltas.peft_format import PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.deltas.values import SHARED_PREFIX
from continual.errors import ExchangeError

PEFT_A, PEFT_B = "base_model.vera_A", "base_model.vera_B"  # PEFT's tensors of no module


@dataclass(frozen=True)
class ProjectionBlock:
    """R of the dimensions between PEFT's A and B, as one projection uses them.

    Attributes:
        name: Equal for projections that can have the dimensions in common.
        a: A [R, D].
        b: B [E, R].
        scale: Factor of d.
    """

    name: str
    a: Tensor
    b: Tensor
    scale: float


def projection_blocks(
    parts: Sequence[PlacedModule], values: Values, form: ScaledRandomProjections | StoredProjections
) -> dict[str, ProjectionBlock]:
    """Return the block of every part, by key.

    Projections share one, except that of several in one module each has its own, unless they use the same rows of B.

    Args:
        parts: Every edit at every place.
        values: All values of a delta by key, of the shapes of the form.
        form: The form of all edits.
    """
    if isinstance(form, ScaledRandomProjections):
        return {part.key: _drawn_block(part, form) for part in parts}
    return {part.key: _stored_block(part, values, group) for group in by_module(parts).values() for part in group}


def _drawn_block(part: PlacedModule, form: ScaledRandomProjections) -> ProjectionBlock:
    scale = math.sqrt(6 / part.place.d_in)  # by which A alone depends on the place
    a, b = form.projections(part.place.d_in, part.place.d_out, torch.device("cpu"))
    return ProjectionBlock(f"{part.place.columns}", a / scale, b, scale)


def _stored_block(part: PlacedModule, values: Values, group: Sequence[PlacedModule]) -> ProjectionBlock:
    """Return the block of one of a module's parts, of the name of the first edit with the same A and B."""
    edit, d = int(part.key.rpartition("/")[2]), values[f"{part.key}/d"]
    owner = next(number for number in range(edit + 1) if _have_same_projections(values, number, edit))
    is_whole = all(torch.equal(values[f"{member.key}/d"], d) for member in group)
    a, b = values[f"{SHARED_PREFIX}/{edit}/A"], values[f"{SHARED_PREFIX}/{edit}/B"]
    name = f"{owner} {None if is_whole else part.place.columns}"
    return ProjectionBlock(name, a[:, : part.place.d_in], b[rows_of(part.place)], 1.0)


def _have_same_projections(values: Values, first: int, second: int) -> bool:
    """Return whether the stored A and B of two edits are the same but for their size."""
    pairs = [[values[f"{SHARED_PREFIX}/{edit}/{name}"] for edit in (first, second)] for name in ("A", "B")]
    shapes = [[min(sizes) for sizes in zip(*(tensor.shape for tensor in pair), strict=True)] for pair in pairs]
    return all(torch.equal(a[:m, :n], b[:m, :n]) for (a, b), (m, n) in zip(pairs, shapes, strict=True))


def read_projections(adapter: PeftAdapter, config: VeRAConfig, d_in: int, d_out: int) -> Mapping[str, Tensor]:
    """Return A [R, D] and B [E, R] of an adapter, at least as large as given: saved, or drawn as PEFT does.

    Args:
        adapter: The adapter.
        config: Its settings.
        d_in: The most inputs of a changed module.
        d_out: The most outputs.

    Raises:
        ExchangeError: They are said to be saved and are not, or are too small.
    """
    if not config.save_projection:
        return draw_projections(config.r, d_in, d_out, seed=config.projection_prng_key)
    a, b = (adapter.tensors.get(name, torch.empty(0, 0)).float() for name in (PEFT_A, PEFT_B))
    if a.shape[:1] != (config.r,) or b.shape[1:] != (config.r,) or a.shape[1] < d_in or b.shape[0] < d_out:
        raise ExchangeError(
            f"the adapter has save_projection, and its {PEFT_A} {list(a.shape)} and {PEFT_B} {list(b.shape)} are not "
            f"at least [{config.r}, {d_in}] and [{d_out}, {config.r}]; save it again in PEFT"
        )
    return {"A": a, "B": b}
