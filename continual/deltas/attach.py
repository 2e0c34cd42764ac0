"""The one piece of code that touches a backbone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbone import Backbone
from continual.deltas.attention import before_keys_and_values
from continual.deltas.change import Change
from continual.deltas.delta import Delta
from continual.deltas.edit import Reads
from continual.deltas.mixed import Mixed
from continual.deltas.prompts import before_tokens
from continual.deltas.values import check_fits, steps, values_of
from continual.sites import with_argument

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@contextmanager
def attached(backbone: Backbone, delta: Delta | Mixed | None) -> Iterator[None]:
    """Inside, every forward pass of `backbone` goes through `delta`'s edits; outside, it is as it was, to the bit.

    Of a mixture, every pass must be of its batch, each row through its own delta. The tensors of deltas never become
    part of the model: `backbone.model.parameters()` stays the same inside. `None` is the plain backbone.

    Raises DeltaError when the delta is another backbone's, or its tensors are not those that its method has here.
    """
    changes = list(_changes(backbone, delta))
    prompts: dict[str, list[Change]] = {}
    for change in changes:
        if change.place.changes == "tokens":
            prompts.setdefault(change.place.name, []).append(change)
    with ExitStack() as undo:
        for change in changes:
            if change.place.changes != "tokens":
                undo.enter_context(_CHANGE[change.place.changes](change))
            elif of_stack := prompts.pop(change.place.name, None):  # a stack reads more tokens once, for all rows
                undo.enter_context(before_tokens(backbone, of_stack))
        yield


def _changes(backbone: Backbone, delta: Delta | Mixed | None) -> Iterator[Change]:
    if isinstance(delta, Mixed):
        yield from delta.changes()
    elif delta is not None:
        check_fits(backbone, delta)
        for place, prefix, edit in steps(backbone, delta.settings):
            yield Change(place, edit, partial(edit.form, values_of(delta.values, prefix), place=place))


@contextmanager
def _change_output(change: Change) -> Iterator[None]:
    place, reads_input = change.place, change.edit.reads is Reads.INPUT
    with _entered(change) as entered:

        def replace(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
            own = output if place.columns is None else output[..., place.columns]
            return _spliced(output, change(own, entered(args, kwargs) if reads_input else own), place.columns)

        with place.exit.register_forward_hook(replace, with_kwargs=True):
            yield


@contextmanager
def _entered(change: Change) -> Iterator[Callable[[Args, Kwargs], Tensor]]:
    """What enters a place, given its last module's call."""
    place = change.place
    if change.edit.reads is not Reads.INPUT or place.enter is place.exit:
        yield place.entered
        return
    entered: list[Tensor] = []  # what the first module was given, until the last is called

    def read(module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        entered[:] = [place.entered(args, kwargs)]

    with place.enter.register_forward_pre_hook(read, with_kwargs=True):
        yield lambda args, kwargs: entered.pop()


def _spliced(output: Tensor, own: Tensor, columns: slice | None) -> Tensor:
    """The output with the place's own columns replaced."""
    if columns is None:
        return own
    return torch.cat((output[..., : columns.start], own.to(output.dtype), output[..., columns.stop :]), dim=-1)


@contextmanager
def _change_input(change: Change) -> Iterator[None]:
    place, reads_input = change.place, change.edit.reads is Reads.INPUT
    with _entered(change) as entered:

        def replace(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            own = place.entered(args, kwargs) if place.enter is place.exit else args[0]
            changed = change(own, entered(args, kwargs) if reads_input else own)
            return with_argument(module, args, kwargs, place.argument, changed)

        with place.exit.register_forward_pre_hook(replace, with_kwargs=True), place.by_row():
            yield


def _change_attention(change: Change) -> AbstractContextManager[None]:
    return before_keys_and_values(change.place.exit, change)


_CHANGE: Mapping[str, Callable[[Change], AbstractContextManager[None]]] = {
    "output": _change_output,
    "input": _change_input,
    "attention": _change_attention,
}
