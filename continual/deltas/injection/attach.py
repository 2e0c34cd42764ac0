"""The one piece of code that touches a backbone."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from continual.backbones.backbone import Backbone
from continual.backbones.sites import Place, replace_argument
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
def attached(backbone: Backbone, delta: Delta | MixedBatch | None) -> Iterator[None]:
    """Inside, every forward pass of `backbone` goes through `delta`'s edits; outside, it is as it was, to the bit.

    Of a mixture, every pass must be of its batch, each row through its own delta. The tensors of deltas never become
    part of the model: `backbone.model.parameters()` stays the same inside. `None` is the plain backbone.

    Raises DeltaError when the delta is another backbone's, or its tensors are not those that its method has here.
    """
    changes = list(_changes(backbone, delta))
    prompts: dict[str, list[PlacedEdit]] = {}
    for change in changes:
        if change.place.changes == "tokens":
            prompts.setdefault(change.place.name, []).append(change)
    with ExitStack() as undo:
        for change in changes:
            if change.place.changes == "attention":
                undo.enter_context(prepend_keys_values(change.place.output_module, change))
            elif change.place.changes != "tokens":
                for handle in _hooks(change):
                    undo.callback(handle.remove)
            elif of_stack := prompts.pop(change.place.name, None):  # a stack reads more tokens once, for all rows
                undo.enter_context(prepend_soft_tokens(backbone, of_stack))
        yield


def _changes(backbone: Backbone, delta: Delta | MixedBatch | None) -> Iterator[PlacedEdit]:
    if isinstance(delta, MixedBatch):
        yield from delta.changes()
    elif delta is not None:
        check_compatible(backbone, delta)
        for place, prefix, edit in iterate_edits(backbone, delta.settings):
            yield PlacedEdit(place, edit, partial(_made, edit.form, values_of(delta.values, prefix), place))


def _made(form: Form, values: Values, place: Place, seen: Tensor) -> Tensor:
    return form(to_device_of(values, seen), seen, place)


def _hooks(change: PlacedEdit) -> Iterator[RemovableHandle]:
    """Hook a change up to the modules of its place."""
    place, enter, reads_input = change.place, change.place.input_module, change.edit.reads is Reads.INPUT
    entered: list[Tensor] = []  # what the first module of several was given, until the last is called

    def note(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        entered[:] = [place.input_of(args, kwargs)]

    def read(own: Tensor, args: Args, kwargs: Kwargs) -> Tensor:
        if not reads_input:
            return own
        return place.input_of(args, kwargs) if enter is place.output_module else entered.pop()

    def change_output(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
        own = output if place.columns is None else output[..., place.columns]
        return _spliced(output, change(own, read(own, args, kwargs)), place.columns)

    def change_input(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        own = place.input_of(args, kwargs) if enter is place.output_module else args[0]
        return replace_argument(module, args, kwargs, place.argument, change(own, read(own, args, kwargs)))

    if reads_input and enter is not place.output_module:
        yield enter.register_forward_pre_hook(note, with_kwargs=True)
    if place.changes == "output":
        yield place.output_module.register_forward_hook(change_output, with_kwargs=True)
    else:
        yield place.output_module.register_forward_pre_hook(change_input, with_kwargs=True)
        yield from place.by_row()


def _spliced(output: Tensor, own: Tensor, columns: slice | None) -> Tensor:
    """The output with the place's own columns replaced."""
    if columns is None:
        return own
    return torch.cat((output[..., : columns.start], own.to(output.dtype), output[..., columns.stop :]), dim=-1)
