"""The layers of a backbone as modules that something else can stand in for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from continual.backbones.backbone import Backbone
from continual.backbones.families.family import LayerStack


def encoder_layers(backbone: Backbone) -> list[nn.Module]:
    """The layers that read a text, from below."""
    return _of_stack(backbone, backbone.family.stack)


def all_layers(backbone: Backbone) -> list[nn.Module]:
    """The same and those that write one, where they are others."""
    decoder = backbone.family.decoder
    return [*encoder_layers(backbone), *(_of_stack(backbone, decoder) if decoder else ())]


def _of_stack(backbone: Backbone, stack: LayerStack) -> list[nn.Module]:
    return [backbone.model.get_submodule(stack.layer_path.format(number)) for number in range(stack.num_layers)]


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, a module does something else; its hooks are called all the same."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # somebody else's
            module.forward = before


@contextmanager
def activation_checkpointing(backbone: Backbone) -> Iterator[None]:
    """Inside, a layer keeps for the gradient what enters it and nothing else: it is computed twice.

    Gradients are the same, and so is what dropout draws. They must be taken inside, and inside what is attached, which
    the second time must do what it did the first. Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost",
    arXiv:1604.06174.
    """
    with ExitStack() as undo:
        for layer in all_layers(backbone):
            undo.enter_context(replace_forward(layer, partial(checkpoint, layer.forward, use_reentrant=False)))
        yield
