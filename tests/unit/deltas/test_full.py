"""Full fine-tuning as a delta against fine-tuning of the language model itself."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached, iterate_edits
from continual.deltas.forms import DenseDelta, EmbeddingDelta
from continual.exchange.merging import merge_into_model
from tests.helpers.parity import batch_of
from tests.helpers.tiny_tasks import fresh_delta, is_unreached, perturbed_delta


def loss_of(writer: Backbone, model: Any) -> Tensor:
    batch = batch_of(writer)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss: Tensor = model(**batch, labels=labels).loss
    return loss


def fine_tuning_gradients(writer: Backbone) -> tuple[Any, dict[str, Tensor]]:
    """Return a trainable copy of the language model, and its parameters' gradients by name; tied ones are one."""
    model = deepcopy(writer.language_model).requires_grad_(True)
    torch.autograd.backward(loss_of(writer, model))
    return model, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def delta_gradients(writer: Backbone, delta: Delta, model: Any) -> dict[str, Tensor]:
    """Return the gradients of a fresh delta's values in the shapes of the parameters of `model`, by their names."""
    trainable = delta.trainable(torch.device("cpu"))
    with attached(writer, trainable):
        torch.autograd.backward(loss_of(writer, writer.language_model))
    paths = {id(module): name for name, module in writer.language_model.named_modules()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gain_number = len(delta.settings.edits()) - 2
    gradients: dict[str, Tensor] = {}
    for place, prefix, edit in iterate_edits(writer, delta.settings):
        module = model.get_submodule(paths[id(place.output_module)])
        number = int(prefix.rpartition("/")[2])
        is_bias = not isinstance(edit.form, DenseDelta | EmbeddingDelta) and number != gain_number
        gradient = trainable.values[f"{prefix}/{'vector' if is_bias or number == gain_number else 'weight'}"].grad
        assert gradient is not None
        owner = module.bias if is_bias else module.weight
        whole = gradients.setdefault(names[id(owner)], torch.zeros_like(owner))
        rows = whole.T if isinstance(module, Conv1D) and whole.dim() == 2 else whole
        rows[place.columns or slice(None)] = gradient
    for place in writer.modules_at("norms"):  # of m in m ⊙ (γ ⊙ n + β) + c, to that of γ
        module = model.get_submodule(paths[id(place.output_module)])
        of_gain = gradients[names[id(module.weight)]]
        if getattr(module, "bias", None) is not None:
            of_gain -= module.bias.detach() * gradients[names[id(module.bias)]]
        of_gain /= place.offset + module.weight.detach()
    return gradients


def test_full_has_the_gradients_of_fine_tuning(writer: Backbone) -> None:
    """Every parameter of the language model, output embeddings and tied tables included."""
    delta = replace(fresh_delta(writer, "full"), head=None)
    model, gradients = fine_tuning_gradients(writer)
    expected = {n: each for n, each in gradients.items() if not is_unreached(writer, n.rpartition(".")[0])}
    actual = delta_gradients(writer, delta, model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    others = sum(each.numel() for name, each in gradients.items() if name not in expected)
    assert sum(value.numel() for value in delta.values.values()) == writer.parameter_count - others


@pytest.mark.parametrize("method", ["full", "last_layer"])
def test_full_fine_tuning_is_folded_into_tied_models(writer: Backbone, method: str) -> None:
    delta = replace(perturbed_delta(writer, method), head=None)
    merged = merge_into_model(writer, delta)
    plain = writer.language_model
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == (
        plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    )
    with attached(writer, delta), torch.no_grad():
        expected = loss_of(writer, plain)
    torch.testing.assert_close(loss_of(writer, merged), expected, rtol=1e-4, atol=1e-4)
