"""The layers of a backbone as modules whose forward can be replaced, and activation checkpointing."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from continual.backbones.backbone import Backbone
from continual.backbones.families.family import LayerStack


def encoder_layers(backbone: Backbone) -> list[nn.Module]:
    """Return the layers that read a text, from the lowest to the highest."""
    return _stack_layers(backbone, backbone.family.stack)


def all_layers(backbone: Backbone) -> list[nn.Module]:
    """Return the layers that read a text, followed by the decoder's layers of an encoder-decoder."""
    decoder = backbone.family.decoder
    return [*encoder_layers(backbone), *(_stack_layers(backbone, decoder) if decoder else ())]


def _stack_layers(backbone: Backbone, stack: LayerStack) -> list[nn.Module]:
    return [backbone.model.get_submodule(stack.layer_path.format(number)) for number in range(stack.num_layers)]


@contextmanager
def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of a module inside the block; its hooks are still called."""
    previous = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if previous is not None:  # an earlier replacement, such as accelerate's
            module.forward = previous


@contextmanager
def activation_checkpointing(backbone: Backbone) -> Iterator[None]:
    """Keep only the layers' inputs inside the block; the backward pass computes each layer again.

    Gradients are the same, and so is what dropout draws. The backward pass must run inside the block, with the same
    deltas attached, which must be deterministic. Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost"
    (arXiv:1604.06174).
    """
    with ExitStack() as undo:
        for layer in all_layers(backbone):
            undo.enter_context(replace_forward(layer, partial(checkpoint, layer.forward, use_reentrant=False)))
        yield
