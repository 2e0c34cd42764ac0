"""Deltas: what one task changes in the frozen backbone, and how it is put there and taken away."""

from continual.deltas.attach import attached
from continual.deltas.bank import Bank
from continual.deltas.blend import average_deltas
from continual.deltas.delta import Delta, Head, delta_from_tensors, load_delta
from continual.deltas.edit import Add, Concatenate, Edit, Form, Multiply, Reads
from continual.deltas.laid import DeltaLayout, layout_of, pool_values
from continual.deltas.method import MethodSettings
from continual.deltas.methods import METHODS, method_settings
from continual.deltas.mixed import MixedBatch
from continual.deltas.recomputed import activation_checkpointing
from continual.deltas.stack import DeltaStack, stack_deltas
from continual.deltas.subspace import Subspace
from continual.deltas.values import (
    can_be_retrained,
    can_warm_start_from,
    finalize,
    init_values,
    iterate_edits,
    regularization_loss,
)

__all__ = [
    "METHODS",
    "Add",
    "Bank",
    "Concatenate",
    "Delta",
    "DeltaLayout",
    "DeltaStack",
    "Edit",
    "Form",
    "Head",
    "MethodSettings",
    "MixedBatch",
    "Multiply",
    "Reads",
    "Subspace",
    "activation_checkpointing",
    "attached",
    "average_deltas",
    "can_be_retrained",
    "can_warm_start_from",
    "delta_from_tensors",
    "finalize",
    "init_values",
    "iterate_edits",
    "layout_of",
    "load_delta",
    "method_settings",
    "pool_values",
    "regularization_loss",
    "stack_deltas",
]
