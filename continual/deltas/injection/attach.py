"""Attach deltas to a backbone inside a `with` block: the only code that hooks a model.

Shapes: B rows of a batch, T tokens, d_read and d_out the last dimensions of an edit's input and change.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from continual.backbones.arguments import replace_argument
from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place
from continual.deltas.delta import Delta
from continual.deltas.edit import Reads
from continual.deltas.injection.mixed_batch import MixedBatch
from continual.deltas.injection.placed_edit import PlacedEdit
from continual.deltas.injection.prefix_attention import prepend_keys_values
from continual.deltas.injection.soft_tokens import prepend_soft_tokens
from continual.deltas.protocols import Form, Values, to_device_of
from continual.deltas.values import check_compatible, iterate_edits, values_of

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@contextmanager
def attached(backbone: Backbone, delta: Delta | MixedBatch | None, *, continued: bool = False) -> Iterator[None]:
    """Route every forward pass inside the block through a delta's edits.

    Afterwards the model is as it was, bit by bit. The tensors of deltas never become part of the model:
    `backbone.model.parameters()` is the same inside.

    Args:
        backbone: The model that is hooked.
        delta: One delta for all rows; or a mixed batch, each row through its own delta, where every forward pass must
            be of its B rows; None for the plain backbone.
        continued: Whether every forward pass goes on behind tokens in a key-value cache, with the vectors that the
            deltas put before them: these are not put there again, and masks and positions count them.

    Raises:
        DeltaError: The delta is another backbone's, or its tensors are not exactly those of its method here.
    """
    edits = list(_placed_edits(backbone, delta, repeated=continued))
    prompts: dict[str, list[PlacedEdit]] = {}
    for edit in edits:
        if edit.place.changes == "tokens" and not continued:
            prompts.setdefault(edit.place.name, []).append(edit)
    with ExitStack() as undo:
        for edit in edits:
            if edit.place.changes == "attention":
                undo.enter_context(prepend_keys_values(edit.place.output_module, edit))
            elif edit.place.changes != "tokens":
                for handle in _hook_modules(edit):
                    undo.callback(handle.remove)
            elif of_stack := prompts.pop(edit.place.name, None):  # a stack is extended once, for all its prompts
                undo.enter_context(prepend_soft_tokens(backbone, of_stack))
        yield


def _placed_edits(backbone: Backbone, delta: Delta | MixedBatch | None, *, repeated: bool) -> Iterator[PlacedEdit]:
    if isinstance(delta, MixedBatch):
        yield from delta.placed_edits(repeated=repeated)
    elif delta is not None:
        check_compatible(backbone, delta)
        for place, prefix, edit in iterate_edits(backbone, delta.settings, stage=delta.stage):
            yield PlacedEdit(place, edit, partial(_compute_change, edit.form, values_of(delta.values, prefix), place))


def _compute_change(form: Form, values: Values, place: Place, inputs: Tensor) -> Tensor:
    return form(to_device_of(values, inputs), inputs, place)


def _hook_modules(edit: PlacedEdit) -> Iterator[RemovableHandle]:
    """Register the hooks of an edit on the modules of its place."""
    place, reads = edit.place, edit.edit.reads
    enter = place.residual_module if reads.is_residual else place.input_module
    block_inputs: list[Tensor] = []  # input of the first module of a block, until its last module is called
    beside: list[Tensor] = []  # what a block that reads the same residual stream adds to it

    def record_input(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        block_inputs[:] = [place.input_of(args, kwargs)]

    def record_beside(module: nn.Module, args: Args, output: Tensor) -> None:
        beside[:] = [output]

    def read(changed: Tensor, args: Args, kwargs: Kwargs) -> Tensor:
        if reads is Reads.OUTPUT:
            return changed
        inputs = place.input_of(args, kwargs) if enter is place.output_module else block_inputs.pop()
        return place.residual_behind(sum(beside, inputs), changed) if reads is Reads.RESIDUAL_BEHIND else inputs

    def change_output(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        part = output if place.columns is None else output[..., place.columns]
        if place.keeps_zeros:
            is_text = place.input_of(args, kwargs).any(dim=-1, keepdim=True)
            return torch.where(is_text, edit(part.clone(), read(part, args, kwargs)), part)
        return _replace_columns(output, edit(part, read(part, args, kwargs)), place.columns)

    def change_input(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        argument = place.input_of(args, kwargs) if enter is place.output_module else args[0]
        return replace_argument(module, args, kwargs, place.argument, edit(argument, read(argument, args, kwargs)))

    if reads is not Reads.OUTPUT and enter is not place.output_module:
        yield enter.register_forward_pre_hook(record_input, with_kwargs=True)
    if reads is Reads.RESIDUAL_BEHIND and place.beside is not None:
        yield place.beside.register_forward_hook(record_beside)
    if place.changes == "output":
        yield place.output_module.register_forward_hook(change_output, with_kwargs=True)
    else:
        yield place.output_module.register_forward_pre_hook(change_input, with_kwargs=True)
        yield from place.allow_positions_per_row()


def _replace_columns(output: Tensor, part: Tensor, columns: slice | None) -> Tensor:
    """Return the output [..., E] with `part` [..., d_out] in place of the columns."""
    if columns is None:
        return part
    return torch.cat((output[..., : columns.start], part.to(output.dtype), output[..., columns.stop :]), dim=-1)
