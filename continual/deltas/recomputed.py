"""Activation checkpointing: less is kept of a pass for the gradient, and computed again where it is needed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from continual.backbone import Backbone
from continual.deltas.layers import all_layers, replace_forward


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
