"""The one piece of code that touches a backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from continual.backbone import Backbone
from continual.deltas.delta import Delta, fresh_values, steps
from continual.deltas.edit import Edit, Reads, Values
from continual.errors import DeltaError


@contextmanager
def attached(backbone: Backbone, delta: Delta | None) -> Iterator[None]:
    """Inside, every forward pass of `backbone` goes through `delta`'s edits; outside, it is as it was, to the bit.

    The delta's tensors never become part of the model: `backbone.model.parameters()` stays the same inside.
    `None` is the plain backbone.

    Raises DeltaError when the delta is another backbone's, or its tensors are not those that its method has here.
    """
    handles = [] if delta is None else _attach(backbone, delta)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(backbone: Backbone, delta: Delta) -> list[RemovableHandle]:
    check_fits(backbone, delta)
    by_place = sorted(steps(backbone, delta.settings), key=lambda step: step[0].name)
    handles = []
    for _, group in groupby(by_place, key=lambda step: step[0].name):
        edits = list(group)
        changes = [(edit, _values(delta, prefix)) for _, prefix, edit in edits]
        handles.append(edits[0][0].module.register_forward_hook(_hook(changes)))
    return handles


def _values(delta: Delta, prefix: str) -> Values:
    return {
        key.removeprefix(f"{prefix}/"): value for key, value in delta.values.items() if key.startswith(f"{prefix}/")
    }


def _hook(changes: list[tuple[Edit, Values]]) -> Any:
    def apply(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for edit, values in changes:
            read = args[0] if edit.reads is Reads.INPUT else output
            output = edit.compose(output, edit.form(values, read))
        return output

    return apply


def check_fits(backbone: Backbone, delta: Delta) -> None:
    """Raise DeltaError unless `delta` belongs to `backbone` and has every tensor of its method, and no other."""
    if delta.backbone != backbone.fingerprint:
        raise DeltaError(
            f"the delta was learned on backbone {delta.backbone[:12]}, not on {backbone.name!r} "
            f"({backbone.fingerprint[:12]}); load the backbone it was learned on, or learn the task again on this one"
        )
    classes, hidden = len(delta.head.labels), backbone.hidden_size
    expected = {key: tuple(value.shape) for key, value in fresh_values(backbone, delta.settings, seed=0).items()}
    expected |= {"head/weight": (classes, hidden), "head/bias": (classes,)}
    found = {key: tuple(value.shape) for key, value in delta.tensors().items()}
    if expected != found:
        missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        shapes = [
            f"{key}: {found[key]}, not {expected[key]}"
            for key in expected.keys() & found.keys()
            if expected[key] != found[key]
        ]
        raise DeltaError(
            f"a {delta.method} delta does not fit backbone {backbone.name!r}: "
            f"missing tensors {missing}, unknown tensors {unknown}, other shapes {sorted(shapes)} "
            f"(its head is for {classes} labels)"
        )
