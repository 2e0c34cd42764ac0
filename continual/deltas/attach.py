"""The one piece of code that touches a backbone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbone import Backbone
from continual.deltas.attention import before_keys_and_values
from continual.deltas.delta import Delta
from continual.deltas.edit import Edit, Reads, Values
from continual.deltas.values import check_fits, steps, values_of
from continual.sites import Changes, Place, named, with_argument

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@contextmanager
def attached(backbone: Backbone, delta: Delta | None) -> Iterator[None]:
    """Inside, every forward pass of `backbone` goes through `delta`'s edits; outside, it is as it was, to the bit.

    The delta's tensors never become part of the model: `backbone.model.parameters()` stays the same inside.
    `None` is the plain backbone.

    Raises DeltaError when the delta is another backbone's, or its tensors are not those that its method has here.
    """
    with ExitStack() as undo:
        if delta is not None:
            check_fits(backbone, delta)
            for place, prefix, edit in steps(backbone, delta.settings):
                undo.enter_context(_CHANGE[place.changes](place, edit, values_of(delta.values, prefix)))
        yield


@contextmanager
def _change_output(place: Place, edit: Edit, values: Values) -> Iterator[None]:
    with _entered(place, edit) as entered:

        def change(module: nn.Module, args: Args, kwargs: Kwargs, output: Tensor) -> Tensor:
            own = output if place.columns is None else output[..., place.columns]
            seen = entered(args, kwargs) if edit.reads is Reads.INPUT else own
            return _spliced(output, edit.compose(own, edit.form(values, seen, place)), place.columns)

        with place.exit.register_forward_hook(change, with_kwargs=True):
            yield


@contextmanager
def _entered(place: Place, edit: Edit) -> Iterator[Callable[[Args, Kwargs], Tensor]]:
    """What enters a place, given its last module's call."""
    if edit.reads is not Reads.INPUT or place.enter is place.exit:
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
def _change_input(place: Place, edit: Edit, values: Values) -> Iterator[None]:
    with _entered(place, edit) as entered:

        def change(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            own = place.entered(args, kwargs) if place.enter is place.exit else args[0]
            seen = entered(args, kwargs) if edit.reads is Reads.INPUT else own
            changed = edit.compose(own, edit.form(values, seen, place))
            return with_argument(module, args, kwargs, place.argument, changed)

        with place.exit.register_forward_pre_hook(change, with_kwargs=True):
            yield


@contextmanager
def _change_attention(place: Place, edit: Edit, values: Values) -> Iterator[None]:
    def change(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, d]; the change is [2, P, E] with E = H · d."""
        heads, width = key.shape[1], key.shape[3]
        change = edit.form(values, key, place)
        rows = change.reshape(*change.shape[:2], heads, width).transpose(1, 2)
        return edit.compose(key, rows[0]), edit.compose(value, rows[1])

    with before_keys_and_values(place.exit, change):
        yield


@contextmanager
def _change_tokens(place: Place, edit: Edit, values: Values) -> Iterator[None]:
    """The stack reads P more tokens, whose vectors are the change [P, D], and returns the states of the others."""
    rows = edit.form(values, place.weight, place)
    extended = False  # whether the pass that is under way begins the text; a cache holds what came before otherwise

    def extend(module: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        nonlocal extended
        call = named(module, args, kwargs)
        cache = call.get("past_key_values")
        extended = cache is None or cache.get_seq_length() == 0
        return (), {**call, **_with_tokens_before(call, len(rows), begins=extended)}

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return edit.compose(output[..., len(rows) :, :], rows) if extended else output

    def shorten(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if extended:
            output.last_hidden_state = output.last_hidden_state[:, len(rows) :]
        return output

    with (
        place.exit.register_forward_pre_hook(extend, with_kwargs=True),
        place.enter.register_forward_hook(replace),
        place.exit.register_forward_hook(shorten),
    ):
        yield


def _with_tokens_before(kwargs: Mapping[str, Any], count: int, *, begins: bool) -> dict[str, Tensor]:
    """The arguments of a stack with `count` tokens more at the front, each standing in for a row of the change."""

    def front(name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        given: Tensor = kwargs[name]
        return torch.cat((make(given[:, :1]).expand(-1, count), given), dim=1)

    makers: dict[str, Callable[[Tensor], Tensor]] = {
        "input_ids": torch.clone,
        "token_type_ids": torch.zeros_like,
        "attention_mask": torch.ones_like,
    }
    used = [name for name in makers if kwargs.get(name) is not None and (begins or name == "attention_mask")]
    changed = {name: front(name, makers[name]) for name in used}
    positions = kwargs.get("position_ids")
    if positions is not None:
        new = torch.arange(count, device=positions.device).expand(len(positions), -1)
        changed["position_ids"] = torch.cat((new, positions + count), dim=1) if begins else positions + count
    return changed


_CHANGE: Mapping[Changes, Callable[[Place, Edit, Values], AbstractContextManager[None]]] = {
    "output": _change_output,
    "input": _change_input,
    "attention": _change_attention,
    "tokens": _change_tokens,
}
