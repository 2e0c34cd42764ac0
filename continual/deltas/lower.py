"""The layers that no edit of a delta reaches: how many they are, what comes out of them, and how to leave them out.

Shapes: B rows, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from continual.backbone import Backbone
from continual.deltas.layers import instead_of, layers_of
from continual.deltas.method import MethodSettings
from continual.deltas.values import steps
from continual.sites import Call, named

Known = Callable[[Call], Tensor | None]  # of what a stack is called with


def untouched(backbone: Backbone, settings: MethodSettings) -> int:
    """How many layers that read a text lie below the lowest edit: all where there is none.

    None, where an edit is at something that belongs to no layer, or where the lowest layer makes something for all.
    """
    if any(site.common for site in backbone.family.stack.sites.values()):
        return 0
    places = (place for place, _, _ in steps(backbone, settings))
    reading = (place.layer for place in places if not place.name.startswith("decoder.layer."))
    return min((layer or 0 for layer in reading), default=backbone.layers)


def states_after(backbone: Backbone, count: int, batch: dict[str, Tensor]) -> Tensor:
    """What the lowest `count` layers make of a batch [B, T, D]; those above are not computed."""
    found: list[Tensor] = []
    layers = layers_of(backbone)
    with ExitStack() as undo:
        last = layers[count - 1]
        undo.enter_context(last.register_forward_hook(lambda module, args, output: found.append(output)))
        for layer in layers[count:]:
            undo.enter_context(instead_of(layer, lambda states, *args, **kwargs: states))
        with backbone.precision():
            backbone.hidden_states(batch)
    return found[-1]


@contextmanager
def left_out(backbone: Backbone, count: int, known: Known) -> Iterator[None]:
    """Inside, the lowest `count` layers are not computed for a batch of which it is known what comes out of them.

    What reads the tokens, and the layers above, are computed as ever; outside, everything is.
    """
    states: Tensor | None = None

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states
        states = known(named(module, args, kwargs))

    def instead(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: forward(*args, **kwargs) if states is None else states

    stack = backbone.places("tokens")[0].exit
    with ExitStack() as undo:
        undo.enter_context(stack.register_forward_pre_hook(ask, with_kwargs=True))
        for layer in layers_of(backbone)[:count]:
            undo.enter_context(instead_of(layer, instead(layer.forward)))
        yield
