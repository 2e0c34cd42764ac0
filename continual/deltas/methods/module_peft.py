"""What the methods that change linear layers have in common in PEFT: one group of tensors per module.

A module computes one projection, or n of them at once, its parts. Shapes: D inputs and E outputs of a module, R rank.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from continual.deltas.method import MethodSettings
from continual.deltas.peft_format import MODULE_PREFIX, ModuleLayout, PeftAdapter, PlacedModule, by_module
from continual.deltas.protocols import Values
from continual.deltas.values import values_of
from continual.errors import ExchangeError

Shapes = Mapping[str, tuple[int, ...]]
REMEDY = "--format transformers writes a plain model with the change in its weights"


def modules_to_peft(
    parts: Sequence[PlacedModule],
    values: Values,
    convert: Callable[[Sequence[PlacedModule], Sequence[Values]], Values],
    **config: Any,
) -> PeftAdapter:
    """Convert the values of every module to PEFT's tensors.

    Args:
        parts: Every edit at every place.
        values: All values of a delta by key, of the shapes of the method's forms.
        convert: Converts the values of one module's parts to tensors of any shapes, by their names in the module.
        config: Further settings of the adapter.
    """
    tensors: dict[str, Tensor] = {}
    for module, module_parts in by_module(parts).items():
        converted = convert(module_parts, [values_of(values, part.key) for part in module_parts])
        tensors |= {f"{MODULE_PREFIX}{module}.{name}": tensor for name, tensor in converted.items()}
    return PeftAdapter({"target_modules": list(by_module(parts)), **config}, tensors)


def read_modules(
    adapter: PeftAdapter, layout: ModuleLayout, shapes: Callable[[PlacedModule], Shapes], *shared: str
) -> dict[str, dict[str, Tensor]]:
    """Return the tensors [...] of every changed module in float32, by module and by name in it.

    Changed are the modules that the adapter has a tensor of, and those that its config targets.

    Args:
        adapter: The adapter.
        layout: The modules of the backbone.
        shapes: The shapes of the tensors of a module, given one of its parts, by name in the module.
        shared: Names of tensors of no module, which are not checked.

    Raises:
        ExchangeError: Other tensors, or no module of this backbone.
    """
    present = set(adapter.module_names())
    layout.sites(present)
    expected: dict[str, Shapes] = {}
    for module, module_parts in by_module(layout.projections()).items():
        if module in present or adapter.targets(module):
            expected[module] = shapes(module_parts[0])
    tensors = {name: tensor for name, tensor in adapter.tensors.items() if name not in shared}
    names = {m: {n: f"{MODULE_PREFIX}{m}.{n}" for n in module_shapes} for m, module_shapes in expected.items()}
    PeftAdapter(adapter.config, tensors).require_tensors(
        {name: expected[m][n] for m, module_names in names.items() for n, name in module_names.items()}
    )
    return {
        m: {n: adapter.tensors[name].float() for n, name in module_names.items()} for m, module_names in names.items()
    }


def values_of_modules(
    layout: ModuleLayout,
    settings: MethodSettings,
    modules: Mapping[str, Values],
    convert: Callable[[PlacedModule, Values], Values],
) -> dict[str, Tensor]:
    """Return a delta's values [...] by key: converted where a module has tensors, fresh ones elsewhere.

    Args:
        layout: The modules of the backbone.
        settings: Settings of a method whose fresh values change nothing.
        modules: As `read_modules` gives them.
        convert: Converts the tensors of a module to the values of one of its parts, by their names in the form.
    """
    values = layout.fresh_values(settings)
    for part in layout.parts(settings):
        if part.module in modules:
            converted = convert(part, modules[part.module])
            values |= {f"{part.key}/{name}": value.contiguous() for name, value in converted.items()}
    return values


def block_columns(parts: Sequence[PlacedModule], blocks: Sequence[Tensor]) -> Tensor:
    """Return [E, nR] with the block [d_out, R] of each of a module's n parts at its own rows and columns.

    With factors [R, D] of the parts one below the other, [nR, D], its product has each part's product at its rows.
    """
    rank = blocks[0].shape[1]
    columns = torch.zeros(parts[0].outputs, len(parts) * rank)
    for number, (part, block) in enumerate(zip(parts, blocks, strict=True)):
        columns[part.rows, number * rank : (number + 1) * rank] = block
    return columns


def part_counts(parts: Iterable[PlacedModule]) -> dict[str, int]:
    """Return the number of parts of every module that has several."""
    return {module: len(group) for module, group in by_module(parts).items() if len(group) > 1}


def is_transposed(parts: Iterable[PlacedModule]) -> bool:
    """Return whether modules keep their weights as [D, E]: PEFT's `fan_in_fan_out`."""
    return any(isinstance(part.place.output_module, Conv1D) for part in parts)


def require_linear(parts: Iterable[PlacedModule], peft_type: str) -> None:
    """Raise ExchangeError if a module is of a type that PEFT does not change by this method.

    Raises:
        ExchangeError: A module is a `Conv1D`, as GPT-2's are.
    """
    if module := next((part.module for part in parts if is_transposed([part])), None):
        raise ExchangeError(
            f"PEFT has {peft_type} for linear layers alone, and {module} is a Conv1D, as in GPT-2. Learn the task by "
            f"lora, dora, ada_lora or vera, which PEFT has there; or {REMEDY}"
        )


def require_single_parts(parts: Iterable[PlacedModule], peft_type: str) -> None:
    """Raise ExchangeError if a module computes several projections, which PEFT's method would change as one.

    Raises:
        ExchangeError: There is such a module.
    """
    if part := next((part for part in parts if part.place.columns is not None), None):
        raise ExchangeError(
            f"PEFT's {peft_type} changes {part.module} as one matrix, and here it computes several projections, each "
            f"with a change of its own ({part.place.site} and others). Give sites that are modules of their own, as "
            f"attn.out and ffn.out; for a delta that was learned, {REMEDY}"
        )


def common_rotation(parts: Sequence[PlacedModule], rotations: Sequence[Tensor], peft_type: str) -> Tensor:
    """Return the rotation [...] that all parts of a module have in common.

    Raises:
        ExchangeError: They have rotations of their own, or not every part has one.
    """
    whole = sum(part.place.d_out for part in parts) == parts[0].outputs
    if whole and all(torch.equal(rotation, rotations[0]) for rotation in rotations):
        return rotations[0]
    raise ExchangeError(
        f"PEFT's {peft_type} rotates the inputs of {parts[0].module} once, and here it computes several projections, "
        "each with a rotation of its own. Give sites that are modules of their own, as attn.out and ffn.out; for a "
        f"delta that was learned, {REMEDY}"
    )
