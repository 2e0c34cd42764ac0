"""Methods that train other values than they store, project them, or train in stages, against their papers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached, finalize, init_values, load_delta, regularization_loss
from continual.deltas.methods.diff_pruning import BETA, GAMMA, ZETA, HardConcreteDiff
from continual.deltas.methods.intrinsic import draw_fastfood_blocks, fastfood, hadamard_transform
from continual.deltas.methods.masking import BinaryMask
from continual.features.pooling import pooled_features
from continual.training.optimizer import AdamWWithSchedule
from continual.training.training_run import train
from tasks import Budget
from tests.helpers.parity import (
    Found,
    assert_same,
    batch_of,
    module_names,
    through_delta,
    through_weights,
    with_weights,
    written_out,
)
from tests.helpers.tiny_tasks import fresh_delta, head_of, perturbed_delta, prepared_rows


@torch.no_grad()
def hidden(backbone: Backbone, delta: Delta) -> Tensor:
    with attached(backbone, delta):
        return backbone.hidden_states(batch_of(backbone))


def assert_same_output(backbone: Backbone, delta: Delta, changed: dict[str, Tensor]) -> None:
    mask = batch_of(backbone)["attention_mask"].bool()
    with torch.no_grad():
        expected = with_weights(backbone, changed)
    torch.testing.assert_close(hidden(backbone, delta)[mask], expected[mask], rtol=1e-4, atol=2e-5)


def weights(backbone: Backbone) -> dict[str, tuple[str, Tensor]]:
    """Return the name and the weight of every projection, by place."""
    names = {place: f"{module}.weight" for place, module in module_names(backbone, "projections").items()}
    return {place: (name, backbone.model.get_parameter(name)) for place, name in names.items()}


# Diff pruning


def gated(backbone: Backbone) -> Delta:
    """Return a diff pruning delta whose gates range from closed to open."""
    delta, draw = perturbed_delta(backbone, "diff_pruning", share=0.1, penalty=0.5), torch.Generator().manual_seed(5)
    return replace(
        delta,
        values={
            key: 3 * torch.randn(value.shape, generator=draw) if key.endswith("log_alpha") else value
            for key, value in delta.values.items()
        },
    )


def sparse_change(delta: Delta, place: str) -> Tensor:
    """Compute z ⊙ w with the mean gate: σ(log α), stretched and clamped."""
    open_ = torch.sigmoid(delta.values[f"{place}/0/log_alpha"])
    return torch.clamp(open_ * (ZETA - GAMMA) + GAMMA, 0, 1) * delta.values[f"{place}/0/difference"]


def test_diff_pruning_frozen_is_w_plus_gated_difference(bertlike: Backbone) -> None:
    delta = gated(bertlike)
    changed = {name: weight + sparse_change(delta, place) for place, (name, weight) in weights(bertlike).items()}
    assert_same_output(bertlike, delta, changed)
    assert torch.equal(hidden(bertlike, delta), hidden(bertlike, delta)), "nothing is drawn"


def test_diff_pruning_trained_draws_hard_concrete_gates(bert: Backbone) -> None:
    place, form, draw = bert.modules_at("attn.q")[0], HardConcreteDiff(0.1, 0.5), torch.Generator().manual_seed(1)
    difference, log_alpha, inputs = (torch.randn(n, 32, generator=draw) for n in (32, 32, 5))
    leaves = [difference.clone().requires_grad_(), log_alpha.clone().requires_grad_()]
    expected = [difference.clone().requires_grad_(), log_alpha.clone().requires_grad_()]
    torch.manual_seed(7)
    output = form({"difference": leaves[0], "log_alpha": leaves[1]}, inputs, place)
    torch.manual_seed(7)
    noise = torch.rand(32, 32)
    stretched = torch.sigmoid((noise.log() - (1 - noise).log() + expected[1]) / BETA) * (ZETA - GAMMA) + GAMMA
    expected_output = inputs @ (torch.minimum(torch.ones(()), torch.relu(stretched)) * expected[0]).T
    torch.autograd.backward([output.square().sum(), expected_output.square().sum()])
    torch.testing.assert_close(output, expected_output)
    for leaf, expected_leaf in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, expected_leaf.grad)


def test_diff_prunings_penalty_is_the_expected_number_of_open_gates(bert: Backbone) -> None:
    delta = gated(bert)
    alphas = torch.cat([v.flatten() for key, v in delta.values.items() if key.endswith("log_alpha")])
    closed_form = torch.sigmoid(alphas - BETA * math.log(-GAMMA / ZETA)).sum()  # Louizos et al. (2018), equation 12
    penalty = regularization_loss(bert, delta)
    torch.testing.assert_close(penalty, 0.5 * closed_form)
    noise = torch.rand(200, len(alphas), generator=torch.Generator().manual_seed(0))
    drawn_open = torch.sigmoid((torch.logit(noise) + alphas) / BETA) * (ZETA - GAMMA) + GAMMA > 0
    assert float(drawn_open.float().mean()) == pytest.approx(float(closed_form) / len(alphas), abs=1e-3)


def test_diff_pruning_keeps_exactly_the_largest_and_trains_those_alone(bertlike: Backbone) -> None:
    delta = gated(bertlike)
    finalized = finalize(bertlike, delta, stage=0)
    changed = {}
    for place, (name, weight) in weights(bertlike).items():
        change = sparse_change(delta, place)
        count = round(0.1 * change.numel())
        least = change.abs().flatten().sort(descending=True).values[count - 1]
        pruned = torch.where(change.abs() >= least, change, 0)
        assert int(pruned.count_nonzero()) == count
        assert finalized.values[f"{place}/0/index"].tolist() == pruned.flatten().nonzero().flatten().tolist()
        changed[name] = weight + pruned
    assert_same_output(bertlike, finalized, changed)
    assert finalize(bertlike, finalized, stage=1).digest == finalized.digest
    again = finalized.trainable(torch.device("cpu"), stage=1)
    learning = {key.rpartition("/")[2] for key, value in again.values.items() if value.requires_grad}
    assert learning == {"difference"}
    assert float(regularization_loss(bertlike, again) or 0) == 0
    assert_same(through_delta(bertlike, finalized, stage=1), _through_scattered(bertlike, finalized))


def _through_scattered(backbone: Backbone, finalized: Delta) -> Found:
    def changed(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (
                weight.flatten()
                .index_add(0, finalized.values[f"{place}/0/index"], values[f"{place}/0/difference"])
                .view(weight.shape)
            )
            for place, (name, weight) in weights(backbone).items()
        }

    return through_weights(backbone, finalized, changed)


# Masking


def test_masking_drops_weights_and_passes_gradients_straight_through(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "masking", dropped=0.3)
    masked = {
        place: (weight * (delta.values[f"{place}/0/scores"] >= 0)).requires_grad_()
        for place, (_, weight) in weights(bertlike).items()
    }
    by_name = {name: masked[place] for place, (name, _) in weights(bertlike).items()}
    expected, _ = through_weights(bertlike, delta, lambda values: by_name)
    gradients = {}
    for place, (_, weight) in weights(bertlike).items():
        gradient = masked[place].grad
        assert gradient is not None
        gradients[f"{place}/0/scores"] = gradient * weight
    assert_same(through_delta(bertlike, delta), (expected, gradients))


@pytest.mark.parametrize("shape", [(3, 8), (5, 13), (1, 1), (4, 17)], ids=str)
def test_packed_masks_are_unpacked_at_any_width(bert: Backbone, shape: tuple[int, int]) -> None:
    place = replace(bert.modules_at("attn.q")[0], input_module=torch.nn.Linear(shape[1], shape[0], bias=False))
    draw = torch.Generator().manual_seed(0)
    form, scores, inputs = BinaryMask(0.5), torch.randn(shape, generator=draw), torch.randn(2, shape[1], generator=draw)
    packed = form.finalize({"scores": scores}, place)
    assert packed["bits"].dtype == torch.uint8
    assert packed["bits"].shape == (shape[0], -(-shape[1] // 8))
    assert np.array_equal(np.unpackbits(packed["bits"].numpy(), axis=1, count=shape[1]), (scores >= 0).numpy())
    assert torch.equal(form(packed, inputs, place), form({"scores": scores}, inputs, place))
    assert form.finalize(packed, place) == packed


def test_a_finalized_mask_has_the_same_outputs_to_the_bit(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "masking")
    finalized = finalize(bertlike, delta, stage=0)
    assert torch.equal(hidden(bertlike, finalized), hidden(bertlike, delta))
    bits = sum(value.numel() for value in finalized.values.values())
    assert 8 * bits == sum(weight.numel() for _, weight in weights(bertlike).values())


# Intrinsic dimension


def projection_matrix(dimension: int, size: int, seed: str) -> Tensor:
    """Stack blocks of H G Π H B, keep the first columns and rows, over √(n · size) (Le et al. 2013)."""
    n = 2 ** max(1, math.ceil(math.log2(dimension)))
    h = torch.tensor(hadamard(n), dtype=torch.float32)
    signs, order, gauss = draw_fastfood_blocks(-(-size // n), n, seed, torch.device("cpu"))
    blocks = [
        h @ torch.diag(g) @ torch.eye(n)[pi] @ h @ torch.diag(b) for b, pi, g in zip(signs, order, gauss, strict=True)
    ]
    return torch.cat(blocks)[:size, :dimension] / math.sqrt(n * size)


@pytest.mark.parametrize(("dimension", "size"), [(8, 24), (5, 30), (1, 7), (16, 16), (100, 1024)], ids=str)
def test_fastfood_is_its_matrix(dimension: int, size: int) -> None:
    theta = torch.randn(dimension, generator=torch.Generator().manual_seed(0))
    expected = projection_matrix(dimension, size, "s") @ theta
    torch.testing.assert_close(fastfood(theta, size, seed="s"), expected, rtol=1e-4, atol=1e-5)


def test_fastfood_keeps_lengths() -> None:
    draw = torch.Generator().manual_seed(0)
    for theta in torch.randn(5, 300, generator=draw):
        ratio = fastfood(theta, 384 * 384, seed="s").norm() / theta.norm()
        assert float(ratio) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("n", [2, 4, 8, 32, 128])
def test_the_hadamard_transform_is_scipys_matrix(n: int) -> None:
    rows = torch.randn(3, n, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard_transform(rows), rows @ torch.tensor(hadamard(n), dtype=torch.float32))


@pytest.mark.parametrize("scaled", [False, True])
def test_intrinsic_is_w_plus_a_projection_of_one_vector(bertlike: Backbone, scaled: bool) -> None:
    delta = perturbed_delta(bertlike, "intrinsic", dimension=10, scaled=scaled)
    projected = {p: projection_matrix(10, w.numel(), f"0/{p}") for p, (_, w) in weights(bertlike).items()}

    def changed(values: dict[str, Tensor]) -> dict[str, Tensor]:
        theta = values["shared/0/theta"]
        return {
            name: weight + values.get(f"{place}/0/scale", 1) * (projected[place] @ theta).view(weight.shape)
            for place, (name, weight) in weights(bertlike).items()
        }

    assert_same(through_delta(bertlike, delta), through_weights(bertlike, delta, changed))


def test_a_projection_cached_in_inference_can_be_trained_through(bert: Backbone) -> None:
    delta = fresh_delta(bert, "intrinsic", dimension=10, seed=3)
    delta = replace(
        delta, settings=delta.settings.model_copy(update={"seed": 12345})
    )  # a projection that is not cached yet
    with torch.inference_mode():
        hidden(bert, delta)
    outputs, gradients = through_delta(bert, delta)
    assert outputs.isfinite().all()
    assert gradients["shared/0/theta"].abs().min() > 0


# Reparameterised prefixes


def test_a_reparameterised_prefix_equals_its_network_and_finalizes_exactly(bertlike: Backbone) -> None:
    delta = perturbed_delta(bertlike, "prefix", length=3, reparameterise=6)
    finalized = finalize(bertlike, delta, stage=0)
    assert torch.equal(hidden(bertlike, finalized), hidden(bertlike, delta))
    assert {key.rpartition("/")[2] for key in finalized.values} == {"key", "value"}
    assert (
        finalized.values.keys()
        == init_values(bertlike, fresh_delta(bertlike, "prefix", length=3).settings, seed=0).keys()
    )

    def rows(layer: int) -> tuple[Tensor, Tensor]:
        mask = {name: delta.values[f"shared/0/{name}"] for name in ("rows", "inner", "inner_bias")}
        outer, bias = (delta.values[f"layer.{layer}.attn.kv/0/{name}"] for name in ("outer", "outer_bias"))
        network_output = torch.tanh(mask["rows"] @ mask["inner"].T + mask["inner_bias"]) @ outer.T + bias
        return network_output[:, :32], network_output[:, 32:]

    mask = batch_of(bertlike)["attention_mask"].bool()
    with torch.no_grad():
        expected = written_out(bertlike, prefix=rows)
    torch.testing.assert_close(hidden(bertlike, delta)[mask], expected[mask], rtol=1e-4, atol=2e-5)


# Sequences


def test_a_later_stage_keeps_the_earlier_stages_values(bertlike: Backbone) -> None:
    parts = [{"name": "lora", "rank": 2}, "bitfit"]
    delta = perturbed_delta(bertlike, "sequential", parts=parts)
    for stage, number in enumerate((("0",), ("1", "2"))):
        trainable = delta.trainable(torch.device("cpu"), stage)
        leaves = [tensor for tensor in trainable.tensors().values() if tensor.requires_grad]
        optimise = AdamWWithSchedule(leaves, learning_rate=1e-2, steps=3)
        head = head_of(trainable)
        with attached(bertlike, trainable):
            for _ in range(3):
                optimise(head(pooled_features(bertlike, batch_of(bertlike), head.readout)).square().sum())
        moved = {key for key, value in trainable.detached().values.items() if not torch.equal(value, delta.values[key])}
        assert moved == {key for key in delta.values if key.split("/")[1] in number}


def test_the_stored_delta_is_finalized_whichever_stage_was_best(bert: Backbone) -> None:
    """A mask whose stage has not come is packed into bits too."""
    start = fresh_delta(bert, "sequential", parts=[{"name": "lora", "rank": 2}, "masking"])
    rows = prepared_rows(bert, "mood", 8)
    for epochs in (0, 1):
        budget = Budget(epochs=epochs, batch_size=4, learning_rate=1e-2)
        result = train(bert, start, rows=rows, validation=rows, budget=budget, metric="accuracy", seed=0)
        assert {key.rpartition("/")[2] for key in result.delta.values} == {"A", "B", "bits"}


LATE_PREFIX = [{"name": "lora", "rank": 2}, {"name": "prefix", "length": 3}]


def test_a_later_part_is_applied_from_its_own_stage_on(bert: Backbone) -> None:
    """Ding et al. (2022), section 5.2: a prefix changes the output as soon as it is attached."""
    start = fresh_delta(bert, "sequential", parts=LATE_PREFIX)
    with torch.no_grad():
        base = bert.hidden_states(batch_of(bert))
    assert torch.equal(hidden(bert, start), base)
    assert not torch.allclose(hidden(bert, start.at_stage(1)), base, atol=1e-2)
    assert start.at_stage(1).at_stage(0).stage is None, "a trained delta keeps all of its parts"


@pytest.mark.parametrize("epochs", [0, 1, 2, 4])
def test_a_delta_is_stored_with_the_parts_that_it_was_scored_with(bert: Backbone, epochs: int) -> None:
    rows = prepared_rows(bert, "mood", 8)
    start = fresh_delta(bert, "sequential", parts=LATE_PREFIX)
    budget = Budget(epochs=epochs, batch_size=4, learning_rate=1e-2)
    result = train(bert, start, rows=rows, validation=rows, budget=budget, metric="accuracy", seed=0)
    assert result.best == max(result.curve, key=lambda epoch: (epoch.score, -epoch.validation_loss))
    assert result.delta.stage == (0 if result.best.number <= -(-epochs // 2) else None)
    stored = load_delta(result.delta.to_bytes())
    assert stored.stage == result.delta.stage
    again = train(bert, stored, rows=rows, validation=rows, budget=Budget(epochs=0), metric="accuracy", seed=0).curve[0]
    assert again.score == result.score
