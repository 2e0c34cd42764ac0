"""Deltas folded into the weights of a plain model."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import NEEDED, fresh_delta, moved_delta
from torch import Tensor, nn

from continual.backbone import Backbone, fingerprint
from continual.deltas import (
    METHODS,
    Add,
    Delta,
    Edit,
    MethodSettings,
    Multiply,
    Reads,
    attached,
    finished,
    fresh_values,
)
from continual.deltas.forms import LowRank, Vector
from continual.deltas.merge import merged, unmergeable
from continual.errors import DeltaError, ExchangeError
from continual.features import pad, tokenize

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]


def batch_of(backbone: Backbone) -> dict[str, Tensor]:
    return pad(backbone, tokenize(backbone, TEXTS, max_length=32), range(len(TEXTS)))


def kept(backbone: Backbone, method: str, **settings: Any) -> Delta:
    """A delta as the registry keeps it, away from its start by as much as training moves one."""
    fresh, moved = (make(backbone, method, **settings) for make in (fresh_delta, moved_delta))
    values = {key: torch.lerp(fresh.values[key], moved.values[key], 0.2) for key in fresh.values}
    return finished(backbone, replace(moved, values=values), stage=0)


@torch.no_grad()
def assert_merges(backbone: Backbone, delta: Delta) -> None:
    batch, before = batch_of(backbone), fingerprint(backbone.model)
    model = merged(backbone, delta)
    with attached(backbone, delta):
        expected = backbone.hidden_states(batch)
    assert not torch.allclose(expected, backbone.hidden_states(batch), atol=1e-3) or not delta.values
    torch.testing.assert_close(model(**batch).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert fingerprint(backbone.model) == before
    assert not any(parameter.requires_grad for parameter in model.parameters())


MERGEABLE = [name for name, kind in METHODS.items() if not unmergeable(kind.model_validate(NEEDED.get(name, {})))]


def test_what_can_be_merged() -> None:
    linear = {"lora", "dora", "ia3", "bitfit", "layer_norm", "full", "last_layer", "selective", "diff_pruning"}
    assert set(MERGEABLE) == linear | {"masking", "intrinsic", "probe", "union", "sequential"}


@pytest.mark.parametrize("method", MERGEABLE)
def test_a_merged_model_has_the_same_states(backbone: Backbone, method: str) -> None:
    assert_merges(backbone, kept(backbone, method))


def test_what_reads_a_scaled_input_is_scaled_too(backbone: Backbone) -> None:
    for parts in (["ia3", "lora", "dora", "bitfit"], ["full", "masking", "ia3", "ia3"], ["dora", "lora", "layer_norm"]):
        assert_merges(backbone, kept(backbone, "union", parts=parts))


class Shifted(MethodSettings):
    """x ← x + a before the feed-forward's last projection, then twice that."""

    def edits(self) -> tuple[Edit, ...]:
        return (
            Edit("ffn.inner", Vector(0.0), Reads.INPUT, Add(0.5)),
            Edit("ffn.inner", Vector(2.0), Reads.INPUT, Multiply()),
        )


def with_settings(backbone: Backbone, settings: MethodSettings) -> Delta:
    generator = torch.Generator().manual_seed(3)
    fresh = fresh_values(backbone, settings, seed=0)
    values = {key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in fresh.items()}
    return replace(moved_delta(backbone, "probe"), method="own", settings=settings, values=values)


def test_what_is_added_to_an_input_goes_through_the_weight(backbone: Backbone) -> None:
    assert_merges(backbone, with_settings(backbone, Shifted()))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(MERGEABLE)))
def test_what_is_no_change_of_weights_is_refused(bert: Backbone, method: str) -> None:
    with pytest.raises(ExchangeError, match=f"a {method} delta cannot.*no change of a weight or a bias"):
        merged(bert, moved_delta(bert, method))


def one_edit(backbone: Backbone, edit: Edit) -> Delta:
    class Own(MethodSettings):
        def edits(self) -> tuple[Edit, ...]:
            return (edit,)

    return with_settings(backbone, Own())


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
def test_an_edit_that_weights_cannot_do_is_refused(bert: Backbone, edit: Edit, reason: str) -> None:
    with pytest.raises(ExchangeError, match=reason):
        merged(bert, one_edit(bert, edit))


def test_a_bias_that_is_not_there_is_refused(bert: Backbone) -> None:
    model = deepcopy(bert.model)
    model.encoder.layer[1].output.dense.bias = None
    without = replace(bert, model=model)
    with pytest.raises(ExchangeError, match=r"layer\.1\.ffn\.out has no bias"):
        merged(without, moved_delta(without, "bitfit"))
    assert_merges(without, kept(without, "lora"))


def test_a_module_that_is_not_what_it_seems_is_noticed(bert: Backbone) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = deepcopy(bert.model)
    model.encoder.layer[0].output.dense.__class__ = Doubled
    odd = replace(bert, model=model)
    with pytest.raises(ExchangeError, match="answers otherwise"):
        merged(odd, moved_delta(odd, "lora"))


def test_a_delta_of_another_backbone_is_refused(bert: Backbone) -> None:
    with pytest.raises(DeltaError, match="learned on backbone"):
        merged(bert, replace(moved_delta(bert, "lora"), backbone="0" * 64))
