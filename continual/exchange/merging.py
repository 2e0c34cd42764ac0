"""Merge a delta into the weights: a plain transformers model that computes the same states.

Shapes: E outputs and D inputs of a module.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.base_model import base_model
from continual.backbones.quantization import quantization_digest
from continual.backbones.sites import Place
from continual.deltas.compose import MergeableComposition
from continual.deltas.delta import Delta
from continual.deltas.edit import Edit, Reads
from continual.deltas.injection.attach import attached
from continual.deltas.method import MethodSettings
from continual.deltas.protocols import AffineMap, Mergeable, Values
from continual.deltas.values import check_compatible, iterate_edits, values_of
from continual.errors import ExchangeError

TOLERANCE = 1e-3  # of the largest state: above the rounding differences of float32 sums in another order


@dataclass(frozen=True)
class _Step:
    """An edit at a place of the backbone, with the same place of the copy whose weights are changed."""

    place: Place
    target: Place
    edit: Edit
    values: Values


def merge_obstacle(settings: MethodSettings) -> str | None:
    """Return why a method's change cannot be merged into weights; None where it can.

    The backbone may still be unable to hold it: a change of a bias needs a module with a bias.

    >>> from continual.deltas import METHODS
    >>> merge_obstacle(METHODS["lora"]())
    >>> merge_obstacle(METHODS["adapter_pfeiffer"]())
    "its edit at 'ffn' (Bottleneck, Add) is no change of a weight or a bias"
    """
    for edit in settings.edits():
        if not isinstance(edit.form, Mergeable) or not isinstance(edit.compose, MergeableComposition):
            names = f"{type(edit.form).__name__}, {type(edit.compose).__name__}"
            return f"its edit at {edit.site!r} ({names}) is no change of a weight or a bias"
    return None


@torch.no_grad()
def merge_into_model(backbone: Backbone, delta: Delta) -> Any:
    """Return a copy of the backbone's model with the delta's change in its weights.

    The copy's outputs are compared with the backbone's under the delta.

    Returns:
        A `transformers.PreTrainedModel`, with its language modelling head where the backbone has one.

    Raises:
        DeltaError: The delta is another backbone's.
        ExchangeError: The change is not affine, a weight or bias to hold it is missing, quantised or split over
            devices, or the merged model's outputs differ.
    """
    check_compatible(backbone, delta)
    if reason := merge_obstacle(delta.settings):
        raise _not_mergeable(delta, reason)
    if quantization_digest(backbone.base_module) or backbone.split:
        raise _not_mergeable(delta, "its weights are quantised, or split over devices")
    if backbone.dtype != torch.float32:
        raise _not_mergeable(delta, f"its matrices are rounded to {backbone.dtype}; load it with dtype float32")
    delta, model = delta.to(backbone.device), deepcopy(backbone.language_model or backbone.model)
    merged = replace(backbone, model=base_model(model), language_model=model if backbone.language_model else None)
    steps = list(_merge_steps(backbone, merged, delta))
    for step in steps:
        if step.place.changes != "input":
            _merge_into_output(delta, step)
    for step in reversed(steps):  # the weight reads the last change first
        if step.place.changes == "input":
            _merge_into_input(delta, step)
    _require_equal_outputs(backbone, delta, merged)
    return model


def _merge_steps(backbone: Backbone, merged: Backbone, delta: Delta) -> Iterator[_Step]:
    sources, targets = (iterate_edits(model, delta.settings, stage=delta.stage) for model in (backbone, merged))
    merged_prefixes: set[str] = set()
    for (place, prefix, edit), (target, _, _) in zip(sources, targets, strict=True):
        if prefix in merged_prefixes:  # a weight that several modules share
            continue
        merged_prefixes.add(prefix)
        yield _Step(place, target, edit, values_of(delta.values, prefix))


def _merge_into_output(delta: Delta, step: _Step) -> None:
    """Change the weight [E, D] or [D], or an embedding's table, and the bias of the module itself."""
    if step.place.changes != "output" or step.place.input_module is not step.place.output_module:
        raise _not_mergeable(delta, f"{step.place.name} is not one module with a weight of its own")
    weight, bias = step.target.weight, step.target.bias
    rows = weight.T if isinstance(step.place.input_module, nn.Embedding) else weight
    new_weight, new_bias = _compose(delta, step, AffineMap(rows + step.place.offset, bias))
    rows.copy_(new_weight - step.place.offset)
    _set_bias(delta, step, new_bias)


def _merge_into_input(delta: Delta, step: _Step) -> None:
    """Change weight [E, D] and bias of the reader: W (γ ⊙ x + a) + b = (W diag γ) x + (W a + b)."""
    weight, bias = step.target.weight, step.target.bias
    gain, shift = _compose(delta, step, AffineMap(torch.ones_like(weight[0]), None))
    if shift is not None:
        _set_bias(delta, step, weight @ shift if bias is None else bias + weight @ shift)
    weight *= gain


def _set_bias(delta: Delta, step: _Step, new: Tensor | None) -> None:
    """Overwrite the bias [E] of the copy."""
    bias = step.target.bias
    if bias is not None and new is not None:
        bias.copy_(new)
    elif new is not None:
        raise _not_mergeable(delta, f"{step.place.name} has no bias in this model to add one to")


def _compose(delta: Delta, step: _Step, module_map: AffineMap) -> tuple[Tensor, Tensor | None]:
    """Return the weight [E, D] or [D] and the bias of a module's map composed with the change of a step."""
    form, compose = step.edit.form, step.edit.compose
    assert isinstance(form, Mergeable)  # or the method would not be mergeable
    assert isinstance(compose, MergeableComposition)
    change = form.as_affine_map(step.values, step.place)
    other_shape = (
        change.weight is not None and module_map.weight is not None and change.weight.shape != module_map.weight.shape
    )
    reads_output = change.weight is not None and step.edit.reads is Reads.OUTPUT
    merged = None if other_shape or reads_output else compose.merged(module_map, change)
    if merged is None or merged.weight is None:
        raise _not_mergeable(delta, f"its change of {step.place.name} is not one of the weight that is there")
    return merged.weight, merged.bias


def _require_equal_outputs(backbone: Backbone, delta: Delta, merged: Backbone) -> None:
    """Raise ExchangeError if outputs differ, as when a module is not affine or shares its weight."""
    with attached(backbone, delta):
        expected = _sample_outputs(backbone, hidden_states=delta.head is not None)
    difference = (_sample_outputs(merged, hidden_states=delta.head is not None) - expected).abs().max()
    if not difference <= TOLERANCE * expected.abs().max():
        raise _not_mergeable(delta, f"the model with other weights answers otherwise, by {float(difference):.2g}")


def _sample_outputs(backbone: Backbone, *, hidden_states: bool) -> Tensor:
    """Compute hidden states [1, 8, D], or the language model's logits [1, 8, vocabulary], of 8 tokens."""
    ids = torch.arange(8, device=backbone.device)[None] + 4
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if hidden_states:
        return backbone.hidden_states(batch)
    decoder_inputs = {"decoder_input_ids": ids} if backbone.family.decoder else {}
    logits: Tensor = backbone.language_model(**batch, **decoder_inputs).logits
    return logits


def _not_mergeable(delta: Delta, reason: str) -> ExchangeError:
    return ExchangeError(
        f"a {delta.method} delta cannot be folded into the weights of this backbone: {reason}. "
        "Export it in another format, or learn the task by a method that docs/reference/methods.md calls mergeable"
    )
