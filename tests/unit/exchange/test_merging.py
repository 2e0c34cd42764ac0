"""Deltas merged into the weights of a plain model, and those that cannot be."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from continual.backbones.backbone import Backbone
from continual.backbones.base_model import base_model
from continual.backbones.fingerprint import fingerprint
from continual.deltas import METHODS, Add, Delta, Edit, Multiply, Reads, attached, finalize, iterate_edits
from continual.deltas.forms import LowRank, Vector
from continual.errors import DeltaError, ExchangeError
from continual.exchange.merging import merge_into_model, merge_obstacle
from continual.features.tokens import pad, tokenize
from tests.helpers.method_pairs import covering_pairs
from tests.helpers.tiny_tasks import REQUIRED_SETTINGS, delta_of_edits, fresh_delta, perturbed_delta

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def finalized(backbone: Backbone, method: str, **settings: Any) -> Delta:
    """Return a delta as the registry stores it, changed about as much as by training."""
    fresh, moved = (make(backbone, method, **settings) for make in (fresh_delta, perturbed_delta))
    values = {key: torch.lerp(fresh.values[key], moved.values[key], 0.2) for key in fresh.values}
    return finalize(backbone, replace(moved, values=values), stage=0)


@torch.no_grad()
def assert_merges(backbone: Backbone, delta: Delta) -> None:
    batch, before = batch_of(backbone), fingerprint(backbone.base_module)
    model = merge_into_model(backbone, delta)
    whole = replace(backbone, model=base_model(model))
    with attached(backbone, delta):
        expected = backbone.hidden_states(batch)
    assert not torch.allclose(expected, backbone.hidden_states(batch), atol=1e-3) or not delta.values
    near = 5e-5 if backbone.family.name == "qwen3_5_text" else 1e-5  # whose recurrence amplifies rounding
    torch.testing.assert_close(whole.hidden_states(batch), expected, rtol=near, atol=near)
    assert fingerprint(backbone.base_module) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


def assert_merges_or_is_refused(backbone: Backbone, delta: Delta) -> None:
    """Check the merged states; some families lack biases."""
    edits = list(iterate_edits(backbone, delta.settings))
    adding = [place for place, _, edit in edits if isinstance(edit.form, Vector) and isinstance(edit.compose, Add)]
    if any(place.bias is None for place in adding):
        with pytest.raises(ExchangeError, match="has no bias in this model"):
            merge_into_model(backbone, delta)
    else:
        assert_merges(backbone, delta)


MERGEABLE = [
    name for name, kind in METHODS.items() if not merge_obstacle(kind.model_validate(REQUIRED_SETTINGS.get(name, {})))
]


def test_which_methods_can_be_merged() -> None:
    linear = {"lora", "dora", "ia3", "bitfit", "layer_norm", "full", "last_layer", "selective", "diff_pruning"}
    linear |= {"ada_lora", "vera", "lora_xs", "tiny_lora", "loha", "lokr", "oft", "boft", "fourier_ft"}
    assert set(MERGEABLE) == linear | {"masking", "intrinsic", "probe", "union", "sequential"}


@pytest.mark.parametrize(("backbone", "method"), covering_pairs(MERGEABLE), indirect=["backbone"])
def test_a_merged_model_has_the_same_states(backbone: Backbone, method: str) -> None:
    assert_merges_or_is_refused(backbone, finalized(backbone, method))


def test_a_scaled_input_is_merged_into_the_weight(backbone: Backbone) -> None:
    for parts in (["ia3", "lora", "dora", "bitfit"], ["full", "masking", "ia3", "ia3"], ["dora", "lora", "layer_norm"]):
        assert_merges_or_is_refused(backbone, finalized(backbone, "union", parts=parts))


def moved_trial(backbone: Backbone, *edits: Edit) -> Delta:
    delta, generator = delta_of_edits(backbone, *edits), torch.Generator().manual_seed(3)
    moved = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in delta.values.items()}
    return replace(delta, values=moved)


def test_an_addition_to_an_input_is_merged_through_the_weight(backbone: Backbone) -> None:
    shift = Edit("ffn.inner", Vector(0.0), Reads.INPUT, Add(0.5))
    scale = Edit("ffn.inner", Vector(2.0), Reads.INPUT, Multiply())
    assert_merges_or_is_refused(backbone, moved_trial(backbone, shift, scale))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(MERGEABLE)))
def test_an_unmergeable_method_is_refused(bert: Backbone, method: str) -> None:
    with pytest.raises(ExchangeError, match=f"a {method} delta cannot.*no change of a weight or a bias"):
        merge_into_model(bert, perturbed_delta(bert, method))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Edit("ffn", LowRank(2), Reads.INPUT, Add()), "not one module"),
        (Edit("attn.out", LowRank(2), Reads.OUTPUT, Add()), "not one of the weight that is there"),
        (Edit("norm.ffn", LowRank(2), Reads.INPUT, Add()), "not one of the weight that is there"),
        (Edit("attn.q", LowRank(2), Reads.INPUT, Multiply()), "not one of the weight that is there"),
        (Edit("embed.word", Vector(0.0), Reads.OUTPUT, Add()), "no bias"),
    ],
    ids=["block", "sequential", "norm", "product", "embedding"],
)
def test_an_edit_without_equivalent_weights_is_refused(bert: Backbone, edit: Edit, reason: str) -> None:
    with pytest.raises(ExchangeError, match=reason):
        merge_into_model(bert, moved_trial(bert, edit))


def test_a_missing_bias_is_refused(bert: Backbone) -> None:
    model = deepcopy(bert.model)
    model.encoder.layer[1].output.dense.bias = None
    without = replace(bert, model=model)
    with pytest.raises(ExchangeError, match=r"layer\.1\.ffn\.out has no bias"):
        merge_into_model(without, perturbed_delta(without, "bitfit"))
    assert_merges(without, finalized(without, "lora"))


def test_a_module_with_a_different_forward_is_refused(bert: Backbone) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = deepcopy(bert.model)
    model.encoder.layer[0].output.dense.__class__ = Doubled
    odd = replace(bert, model=model)
    with pytest.raises(ExchangeError, match="answers otherwise"):
        merge_into_model(odd, perturbed_delta(odd, "lora"))


def test_a_delta_of_another_backbone_is_refused(bert: Backbone) -> None:
    with pytest.raises(DeltaError, match="learned on backbone"):
        merge_into_model(bert, replace(perturbed_delta(bert, "lora"), backbone="0" * 64))
