"""Deltas: small changes of a frozen backbone, one per task, and their exact application and removal.

A method (`method`, `methods`) is a tuple of edits (`edit`); each edit is a form (`protocols`, `forms`) at a site, with
an input and a composition (`compose`). A delta (`delta`) holds the learned values of the edits (`values`) and a head;
`injection` applies one delta, or many in a mixed batch, to a backbone.
"""

from continual.deltas.averaging import average_deltas
from continual.deltas.compose import Add, Concatenate, Multiply
from continual.deltas.delta import Delta, Head, delta_from_tensors, head_from_metadata, load_delta
from continual.deltas.edit import Edit, Reads
from continual.deltas.forms import Bottleneck, LowRank, Vector
from continual.deltas.injection.attach import attached
from continual.deltas.injection.bank import Bank
from continual.deltas.injection.layout import DeltaLayout, layout_of, pool_values
from continual.deltas.injection.mixed_batch import DeltaStack, MixedBatch, stack_deltas
from continual.deltas.method import METHODS, MethodSettings, method_settings
from continual.deltas.methods.subspace import Subspace
from continual.deltas.protocols import Form
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
    "Bottleneck",
    "Concatenate",
    "Delta",
    "DeltaLayout",
    "DeltaStack",
    "Edit",
    "Form",
    "Head",
    "LowRank",
    "MethodSettings",
    "MixedBatch",
    "Multiply",
    "Reads",
    "Subspace",
    "Vector",
    "attached",
    "average_deltas",
    "can_be_retrained",
    "can_warm_start_from",
    "delta_from_tensors",
    "finalize",
    "head_from_metadata",
    "init_values",
    "iterate_edits",
    "layout_of",
    "load_delta",
    "method_settings",
    "pool_values",
    "regularization_loss",
    "stack_deltas",
]
