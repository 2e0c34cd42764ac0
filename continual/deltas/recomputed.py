"""Activation checkpointing: less is kept of a pass for the gradient, and computed again where it is needed."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch.utils.checkpoint import checkpoint

from continual.backbone import Backbone
from continual.deltas.layers import every_layer, instead_of


@contextmanager
def recomputed(backbone: Backbone) -> Iterator[None]:
    """Inside, a layer keeps for the gradient what enters it and nothing else: it is computed twice.

    Gradients are the same, and so is what dropout draws. They must be taken inside, and inside what is attached, which
    the second time must do what it did the first. Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost",
    arXiv:1604.06174.
    """
    with ExitStack() as undo:
        for layer in every_layer(backbone):
            undo.enter_context(instead_of(layer, partial(checkpoint, layer.forward, use_reentrant=False)))
        yield
