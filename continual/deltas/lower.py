"""The layers that no edit of a delta reaches: how many they are, what comes out of them, and how to leave them out.

Shapes: B rows, T tokens, D hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from continual.backbone import Backbone
from continual.deltas.layers import encoder_layers, replace_forward
from continual.deltas.method import MethodSettings
from continual.deltas.values import iterate_edits
from continual.sites import Call, bind_arguments

CachedStatesLookup = Callable[[Call], Tensor | None]  # of what a stack is called with


def count_unedited_layers(backbone: Backbone, settings: MethodSettings) -> int:
    """How many layers that read a text lie below the lowest edit: all where there is none.

    None, where an edit is at something that belongs to no layer, or where the lowest layer makes something for all.
    """
    if any(site.common for site in backbone.family.stack.sites.values()):
        return 0
    places = (place for place, _, _ in iterate_edits(backbone, settings))
    reading = (place.layer for place in places if not place.name.startswith("decoder.layer."))
    return min((layer or 0 for layer in reading), default=backbone.layers)


def run_first_layers(backbone: Backbone, count: int, batch: dict[str, Tensor]) -> Tensor:
    """What the lowest `count` layers make of a batch [B, T, D]; those above are not computed."""
    found: list[Tensor] = []
    layers = encoder_layers(backbone)
    with ExitStack() as undo:
        last = layers[count - 1]
        undo.enter_context(last.register_forward_hook(lambda module, args, output: found.append(output)))
        for layer in layers[count:]:
            undo.enter_context(replace_forward(layer, lambda states, *args, **kwargs: states))
        with backbone.autocast():
            backbone.hidden_states(batch)
    return found[-1]


@contextmanager
def skip_first_layers(backbone: Backbone, count: int, known: CachedStatesLookup) -> Iterator[None]:
    """Inside, the lowest `count` layers are not computed for a batch of which it is known what comes out of them.

    What reads the tokens, and the layers above, are computed as ever; outside, everything is.
    """
    states: Tensor | None = None

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal states
        states = known(bind_arguments(module, args, kwargs))

    def instead(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: forward(*args, **kwargs) if states is None else states

    stack = backbone.modules_at("tokens")[0].output_module
    with ExitStack() as undo:
        undo.enter_context(stack.register_forward_pre_hook(ask, with_kwargs=True))
        for layer in encoder_layers(backbone)[:count]:
            undo.enter_context(replace_forward(layer, instead(layer.forward)))
        yield
