"""The states that a head reads: after how many layers, and how a text's tokens become one vector.

    h(x) = pool(norm(h_l(x)))

with h_l the states after the first l layers and norm what the backbone has behind its last layer. This is what the
backbone with the configuration `num_hidden_layers = l` computes, so a text is read by those layers alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

from torch import Tensor, nn

from continual.backbones.base_model import base_model
from continual.backbones.families.family import LayerStack
from continual.backbones.hub import Pooling


class Readout(NamedTuple):
    """Where the vector of a text is read.

    Attributes:
        pooling: How the states of a text's tokens become one vector.
        layers: How many of the lowest layers compute the states; None for all.
    """

    pooling: Pooling
    layers: int | None = None


@contextmanager
def first_layers(model: Any, stack: LayerStack, count: int | None) -> Iterator[None]:
    """Run only the lowest `count` layers of a stack inside the block; all of them for None.

    What is attached to the layers above is not called.

    Args:
        model: The transformers model.
        stack: The stack of layers.
        count: How many layers run, at least one.
    """
    if count is None or count >= stack.num_layers:
        yield
        return
    with _replaced_layers(model, stack, lambda layers: layers[:count]):
        yield


def keep_first_layers(model: Any, stack: LayerStack, count: int) -> None:
    """Remove the layers above the lowest `count` from a transformers model, for good, and from its configuration.

    Args:
        model: The model, with or without heads.
        stack: The stack of layers.
        count: How many layers stay, at least one.
    """
    owner, name = _owner(base_model(model), stack)
    setattr(owner, name, getattr(owner, name)[:count])
    config = model.config
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]


def states_at_depths(
    model: Any, stack: LayerStack, depths: Collection[int | None], forward: Callable[[], Tensor]
) -> dict[int | None, Tensor]:
    """Return the states that a backbone of each depth ends with, from one pass through the deepest.

    Args:
        model: The transformers model.
        stack: The stack of layers.
        depths: Numbers of layers; None for all.
        forward: Runs the model and returns its last hidden states [B, T, D].

    Returns:
        The states [B, T, D] by depth.
    """
    ends = {depth: stack.num_layers if depth is None else min(depth, stack.num_layers) for depth in depths}
    deepest = max(ends.values())
    recorded: dict[int, Tensor] = {}
    with first_layers(model, stack, deepest), _recorded_outputs(model, stack, {*ends.values()} - {deepest}, recorded):
        last = forward()
    by_end = {deepest: last} | {end: states_behind(model, stack, states, forward) for end, states in recorded.items()}
    return {depth: by_end[end] for depth, end in ends.items()}


def states_behind(model: Any, stack: LayerStack, states: Tensor, forward: Callable[[], Tensor]) -> Tensor:
    """Return what a backbone makes of the states [B, T, D] of its last layer: norm(h), of the same shape.

    Args:
        model: The transformers model.
        stack: The stack of layers.
        states: The output of a layer for some batch.
        forward: Runs the model on the same batch and returns its last hidden states [B, T, D].
    """
    with _replaced_layers(model, stack, lambda layers: [_returning(layers[0], states)]):
        return forward()


@contextmanager
def _recorded_outputs(
    model: Any, stack: LayerStack, ends: Collection[int], recorded: dict[int, Tensor]
) -> Iterator[None]:
    """Record the states behind some numbers of layers inside the block."""

    def recorder(end: int) -> Callable[..., None]:
        return lambda module, args, output: recorded.__setitem__(end, output)

    layers = getattr(*_owner(model, stack))
    handles = [layers[end - 1].register_forward_hook(recorder(end)) for end in sorted(ends)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _replaced_layers(model: Any, stack: LayerStack, change: Callable[[Any], Sequence[nn.Module]]) -> Iterator[None]:
    """Put other layers in the place of a stack's inside the block."""
    owner, name = _owner(model, stack)
    layers = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(change(layers)))
    try:
        yield
    finally:
        setattr(owner, name, layers)


def _owner(model: Any, stack: LayerStack) -> tuple[Any, str]:
    """The module that has a stack's list of layers, and the list's name in it."""
    parent, _, name = stack.layer_path.removesuffix(".{}").rpartition(".")
    return model.get_submodule(parent), name


def _returning(layer: nn.Module, states: Tensor) -> nn.Module:
    """Return a layer with the attributes of another one, without its hooks, that returns these states [B, T, D]."""
    stand_in = copy(layer)
    for name, value in vars(layer).items():
        if name.endswith("_hooks") and value:
            setattr(stand_in, name, type(value)())
    stand_in.forward = lambda *args, **kwargs: states
    return stand_in
