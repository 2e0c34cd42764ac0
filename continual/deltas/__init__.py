"""Deltas: what one task changes in the frozen backbone, and how it is put there and taken away."""

from continual.deltas.attach import attached
from continual.deltas.bank import Bank
from continual.deltas.blend import blend
from continual.deltas.delta import Delta, Head, delta_of, load_delta
from continual.deltas.edit import Add, Concatenate, Edit, Form, Multiply, Reads
from continual.deltas.laid import Laid, in_pools, laid
from continual.deltas.method import MethodSettings
from continual.deltas.methods import METHODS, method_settings
from continual.deltas.mixed import Mixed
from continual.deltas.recomputed import recomputed
from continual.deltas.stack import Stack, stack_of
from continual.deltas.subspace import Subspace
from continual.deltas.values import copyable, finished, fresh_values, penalty, repeatable, steps

__all__ = [
    "METHODS",
    "Add",
    "Bank",
    "Concatenate",
    "Delta",
    "Edit",
    "Form",
    "Head",
    "Laid",
    "MethodSettings",
    "Mixed",
    "Multiply",
    "Reads",
    "Stack",
    "Subspace",
    "attached",
    "blend",
    "copyable",
    "delta_of",
    "finished",
    "fresh_values",
    "in_pools",
    "laid",
    "load_delta",
    "method_settings",
    "penalty",
    "recomputed",
    "repeatable",
    "stack_of",
    "steps",
]
