"""Deltas folded into the weights: a plain model that computes what the backbone with the delta does."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
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

TOLERANCE = 1e-3  # of the largest entry of the states: above what float32 sums in another order differ by


@dataclass(frozen=True)
class _Step:
    """An edit at a place of the backbone, and the same place of the copy that is being changed."""

    place: Place
    copied: Place
    edit: Edit
    values: Values


def merge_obstacle(settings: MethodSettings) -> str | None:
    """Why weights cannot do what a method does; None where they can, if the backbone has the biases for it.

    >>> from continual.deltas import METHODS
    >>> unmergeable(METHODS["lora"]())
    >>> unmergeable(METHODS["adapter_pfeiffer"]())
    "what it does at 'ffn.out' (Bottleneck, Add) is no change of a weight or a bias"
    """
    for edit in settings.edits():
        if not isinstance(edit.form, Mergeable) or not isinstance(edit.compose, MergeableComposition):
            names = f"{type(edit.form).__name__}, {type(edit.compose).__name__}"
            return f"what it does at {edit.site!r} ({names}) is no change of a weight or a bias"
    return None


@torch.no_grad()
def merge_into_model(backbone: Backbone, delta: Delta) -> Any:
    """A copy of the backbone's model, a transformers.PreTrainedModel, whose weights hold the delta's change.

    With its language modelling head, where there is one.

    Raises DeltaError for another backbone's delta, ExchangeError where weights and biases cannot do what it does.
    """
    check_compatible(backbone, delta)
    if reason := merge_obstacle(delta.settings):
        raise _refused(delta, reason)
    if quantization_digest(backbone.base_module) or backbone.split:
        raise _refused(delta, "its weights are quantised, or split over devices")
    own, whole = delta.to(backbone.device), deepcopy(backbone.language_model or backbone.model)
    copied = replace(backbone, model=whole.base_model, language_model=whole if backbone.language_model else None)
    found = list(_steps(backbone, copied, own))
    for step in found:
        if step.place.changes != "input":
            _into_output(delta, step)
    for step in reversed(found):  # what is changed last is read first by the weight
        if step.place.changes == "input":
            _into_input(delta, step)
    _require_same(backbone, own, copied)
    return whole


def _steps(backbone: Backbone, copied: Backbone, delta: Delta) -> Iterator[_Step]:
    theirs = iterate_edits(copied, delta.settings)
    for (place, prefix, edit), (target, _, _) in zip(iterate_edits(backbone, delta.settings), theirs, strict=True):
        yield _Step(place, target, edit, values_of(delta.values, prefix))


def _into_output(delta: Delta, step: _Step) -> None:
    if step.place.changes != "output" or step.place.input_module is not step.place.output_module:
        raise _refused(delta, f"{step.place.name} is not one module with a weight of its own")
    weight, bias = step.copied.weight, step.copied.bias
    rows = weight.T if isinstance(step.place.input_module, nn.Embedding) else weight
    new_weight, new_bias = _composed(delta, step, AffineMap(rows, bias))
    rows.copy_(new_weight)
    _set_bias(delta, step, new_bias)


def _into_input(delta: Delta, step: _Step) -> None:
    """W (γ ⊙ x + a) + b = (W diag γ) x + (W a + b)"""
    weight, bias = step.copied.weight, step.copied.bias
    gain, shift = _composed(delta, step, AffineMap(torch.ones_like(weight[0]), None))
    if shift is not None:
        _set_bias(delta, step, weight @ shift if bias is None else bias + weight @ shift)
    weight *= gain


def _set_bias(delta: Delta, step: _Step, new: Tensor | None) -> None:
    bias = step.copied.bias
    if bias is not None and new is not None:
        bias.copy_(new)
    elif new is not None:
        raise _refused(delta, f"{step.place.name} has no bias in this model to add one to")


def _composed(delta: Delta, step: _Step, own: AffineMap) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the map `own` with the change of a step composed to it."""
    form, compose = step.edit.form, step.edit.compose
    assert isinstance(form, Mergeable)  # or the method would not be mergeable
    assert isinstance(compose, MergeableComposition)
    change = form.as_affine_map(step.values, step.place)
    other_shape = change.weight is not None and own.weight is not None and change.weight.shape != own.weight.shape
    reads_itself = change.weight is not None and step.edit.reads is Reads.OUTPUT
    found = None if other_shape or reads_itself else compose.merged(own, change)
    if found is None or found.weight is None:
        raise _refused(delta, f"its change of {step.place.name} is not one of the weight that is there")
    return found.weight, found.bias


def _require_same(backbone: Backbone, delta: Delta, copied: Backbone) -> None:
    """A module that is not the plain affine map it seems to be, or shares its weight, is noticed here."""
    with attached(backbone, delta):
        expected = _said(backbone, of_model=delta.head is not None)
    difference = (_said(copied, of_model=delta.head is not None) - expected).abs().max()
    if not difference <= TOLERANCE * expected.abs().max():
        raise _refused(delta, f"the model with other weights answers otherwise, by {float(difference):.2g}")


def _said(backbone: Backbone, *, of_model: bool) -> Tensor:
    """What a few tokens become: their last states, which a head is put on, or what the language model makes of them."""
    ids = torch.arange(8, device=backbone.device)[None] + 4
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if of_model:
        return backbone.hidden_states(batch)
    written = {"decoder_input_ids": ids} if backbone.family.decoder else {}
    logits: Tensor = backbone.language_model(**batch, **written).logits
    return logits


def _refused(delta: Delta, reason: str) -> ExchangeError:
    return ExchangeError(
        f"a {delta.method} delta cannot be folded into the weights of this backbone: {reason}. "
        "Export it in another format, or learn the task by a method that docs/methods.md calls mergeable"
    )
