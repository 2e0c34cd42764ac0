"""Averages of deltas for every method, of low-rank deltas of different rank, and of their heads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, average_deltas, can_warm_start_from
from continual.deltas.compose import Add
from continual.deltas.forms import Bottleneck, LowRank
from continual.deltas.methods.lora import LoRA
from continual.features.discriminant import combine_heads
from continual.features.pooling import encode
from continual.kinds import ForwardContext
from continual.kinds.classification import Classification
from continual.learning.checkpoint import Checkpoint
from continual.learning.learn import LearningRun
from continual.learning.prepared import prepare_task
from continual.training.steps import run_training
from continual.transfer.warm_start import (
    Neighbour,
    WarmStartCandidate,
    average_candidate,
    best_neighbour,
    evaluate_candidate,
    from_scratch,
)
from registry import Registry
from tasks import TaskData, TaskSpec
from tests.helpers.tiny_tasks import fresh_delta, labels_of, perturbed_delta, prepared_rows, rows_of


def product(delta: Delta, key: str) -> Tensor:
    compose = delta.settings.edits()[0].compose
    assert isinstance(compose, Add)
    scale = compose.scale
    return scale * delta.values[f"{key}/B"] @ delta.values[f"{key}/A"]


def places(delta: Delta) -> set[str]:
    return {key.rpartition("/")[0] for key in delta.values}


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_averaged_with_itself_is_a_valid_start(bert: Backbone, method: str) -> None:
    delta = perturbed_delta(bert, method)
    average = average_deltas(bert, delta.settings, [delta, delta], [0.25, 0.75])
    if average is None:
        assert any(not value.is_floating_point() for value in delta.values.values()) or method in {"masking"}
        return
    assert can_warm_start_from(bert, average, delta.settings)
    assert list(average.values) == list(fresh_delta(bert, method).values)
    texts = prepared_rows(bert, "mood", 6).tokens
    if not method.startswith(("adapter", "parallel", "mam", "union", "sequential")):
        same = encode(bert, texts, delta=average), encode(bert, texts, delta=delta)
        torch.testing.assert_close(*same, rtol=1e-3, atol=1e-3)


def test_low_rank_averages_are_truncated_to_the_rank(bert: Backbone) -> None:
    first, second = (
        perturbed_delta(bert, "lora", rank=2, alpha=2.0),
        perturbed_delta(bert, "lora", rank=3, alpha=6.0, seed=5),
    )
    exact = average_deltas(bert, LoRA(rank=5, alpha=10.0), [first, second], [0.3, 0.7])
    short = average_deltas(bert, LoRA(rank=2), [first, second], [0.3, 0.7])
    assert exact is not None
    assert short is not None
    for key in places(first):
        expected = 0.3 * product(first, key) + 0.7 * product(second, key)
        torch.testing.assert_close(product(exact, key), expected, rtol=1e-4, atol=1e-5)
        u, sizes, right = torch.linalg.svd(expected)
        best = u[:, :2] * sizes[:2] @ right[:2]
        torch.testing.assert_close(product(replace(short), key) * 1.0, best, rtol=1e-3, atol=1e-4)


def test_surplus_rank_is_filled_with_zeros(bert: Backbone) -> None:
    delta = perturbed_delta(bert, "lora", rank=1)
    average = average_deltas(bert, LoRA(rank=4, alpha=4.0), [delta, delta], [0.5, 0.5])
    assert average is not None
    for key in places(delta):
        assert average.values[f"{key}/A"].shape[0] == 4
        torch.testing.assert_close(product(average, key), product(delta, key), rtol=1e-4, atol=1e-5)


def test_averaged_bottlenecks_keep_the_most_active_units() -> None:
    large = {"down": 9 * torch.eye(2), "up": torch.eye(2), "down_bias": torch.ones(2), "up_bias": torch.ones(2)}
    small = {"down": torch.eye(2), "up": torch.eye(2), "down_bias": torch.zeros(2), "up_bias": -torch.ones(2)}
    average = Bottleneck(2, None).weighted_average([small, large], [0.5, 0.5])
    torch.testing.assert_close(average["down"], large["down"])
    torch.testing.assert_close(average["up"], 0.5 * large["up"])
    torch.testing.assert_close(average["up_bias"], torch.zeros(2))
    whole = Bottleneck(4, None).weighted_average([small, large], [0.5, 0.5])
    inputs = torch.tensor([[0.3, -0.7]])
    apart = [Bottleneck(2, None)(values, inputs, None) for values in (small, large)]  # type: ignore[arg-type]
    torch.testing.assert_close(Bottleneck(4, None)(whole, inputs, None), sum(apart) / 2)  # type: ignore[arg-type]


def test_deltas_of_different_methods_or_sites_are_not_averaged(bert: Backbone) -> None:
    lora, bitfit = perturbed_delta(bert, "lora"), perturbed_delta(bert, "bitfit")
    assert average_deltas(bert, lora.settings, [lora, bitfit], [0.5, 0.5]) is None
    elsewhere = perturbed_delta(bert, "lora", sites=("attn.q",))
    assert average_deltas(bert, lora.settings, [lora, elsewhere], [0.5, 0.5]) is None
    short = perturbed_delta(bert, "prefix", length=2)
    assert average_deltas(bert, METHODS["prefix"].model_validate({"length": 4}), [short, short], [0.5, 0.5]) is None


def test_heads_are_averaged_label_by_label(bert: Backbone) -> None:
    """In any order of the labels; heads with other labels are left out."""
    first, two, third = (perturbed_delta(bert, "bitfit", seed=seed) for seed in (1, 2, 3))
    assert first.head
    assert two.head
    assert third.head
    turned = replace(two, head=two.head.reorder_labels(two.head.labels[::-1]))
    relabelled = replace(third, head=replace(third.head, labels=("new", *third.head.labels[1:])))
    weights = [0.3, 0.2, 0.5]
    average = average_deltas(bert, first.settings, [first, turned, relabelled], weights)
    assert average is not None
    assert average.head is not None
    assert average.head.labels == first.head.labels
    for part in ("weight", "bias"):
        expected = 0.6 * getattr(first.head, part) + 0.4 * getattr(two.head, part)
        torch.testing.assert_close(getattr(average.head, part), expected)


def test_low_rank_is_the_best_of_its_rank() -> None:
    """The truncated SVD is the nearest matrix of its rank (Eckart and Young, 1936)."""
    draw = torch.Generator().manual_seed(0)
    sets = [{"A": torch.randn(3, 6, generator=draw), "B": torch.randn(5, 3, generator=draw)} for _ in range(2)]
    average = LowRank(2).weighted_average(sets, [0.5, 0.5])
    expected = sum(values["B"] @ values["A"] for values in sets) / 2
    error = torch.linalg.matrix_norm(expected - average["B"] @ average["A"])
    assert float(error) == pytest.approx(float(torch.linalg.svdvals(expected)[2:].square().sum().sqrt()), rel=1e-4)


def test_neighbours_are_weighted_by_their_gain(bert: Backbone) -> None:
    task, context = Classification(labels_of("mood")), ForwardContext(bert, None, prepared_rows(bert, "mood", 12))
    scratch = from_scratch(task.closed_form_start(context, context))

    def of(name: str, gain: float, *, again: bool = False) -> WarmStartCandidate:
        delta = perturbed_delta(bert, "lora", seed=len(name))
        average = evaluate_candidate(
            task, (Neighbour(name, delta, is_previous_version=again), 1.0), delta=delta, rows=context, held_out=context
        )
        quality = scratch.start.held_out_quality + gain
        return replace(average, start=replace(average.start, held_out_quality=quality))

    settings, candidates = (
        METHODS["lora"](),
        [of("a", 0.3), of("bb", 0.1), of("ccc", -0.2), of("dddd", 0.9, again=True)],
    )
    average = average_candidate(bert, settings, scratch=scratch, candidates=candidates)
    assert average is not None
    assert [neighbour.name for neighbour, _ in average[1]] == ["a", "bb"]
    assert [weight for _, weight in average[1]] == pytest.approx([0.75, 0.25])
    assert average_candidate(bert, settings, scratch=scratch, candidates=candidates[1:]) is None, "one alone is no mean"
    foreign = replace(candidates[0], delta=perturbed_delta(bert, "bitfit"))
    among = average_candidate(bert, settings, scratch=scratch, candidates=[*candidates, foreign])
    assert among is not None
    assert among[1] == average[1], "another method's is left out"


def test_a_start_that_cannot_be_reproduced_is_chosen_again(bert: Backbone, tmp_path: Path) -> None:
    """Another machine may average other neighbours: a checkpoint of another start is not resumed."""
    about = {"name": "mood", "source": {"path": "none"}, "text": "text", "label": "label", "method": "lora"}
    budget = {"epochs": 2, "batch_size": 8, "max_length": 32}
    spec = TaskSpec.model_validate(about | {"warm_start": "merge", "budget": budget})
    train, validation, test = (rows_of("mood", n, seed=seed) for seed, n in enumerate((12, 20, 12)))
    task = prepare_task(bert, TaskData(spec, labels_of("mood"), train, validation, test))
    neighbours = tuple(Neighbour(f"{seed}@1", perturbed_delta(bert, "lora", seed=seed)) for seed in (1, 2))
    checkpoints: list[Checkpoint] = []
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as registry:
        run_training(LearningRun(registry, task, seed=0, on_checkpoint=checkpoints.append), seed=0)
        plan = replace(checkpoints[1].plan, neighbours=neighbours)
        gone = replace(checkpoints[1], plan=plan, start=("1@1", "9@1"))
        anew = run_training(LearningRun(registry, task, seed=0, resume_from=gone), seed=0)
        reproducible = replace(gone, start=anew.start.names)
        again = run_training(LearningRun(registry, task, seed=0, resume_from=reproducible), seed=0)
    assert anew.start.sources
    assert [epoch.number for epoch in anew.trained.curve] == [0, 1, 2]
    assert anew.trained.curve[:2] != checkpoints[1].training_state.curve, "it is trained from its beginning"
    assert again.trained.curve[:2] == checkpoints[1].training_state.curve, "as one that can be made again is not"


def test_two_heads_are_compared_on_held_out_rows() -> None:
    draw = torch.Generator().manual_seed(1)
    classes = torch.arange(200) % 2
    x = torch.randn(200, 4, generator=draw)
    x[:, 0] += 2.0 * (2 * classes - 1)
    zero, along = torch.zeros(2, 4), torch.zeros(2, 4)
    along[:, 0] = torch.tensor([-1.0, 1.0])
    noise = torch.randn(2, 4, generator=draw)
    bias = torch.zeros(2)
    (weight, _), right = combine_heads((noise, bias), (along, bias), x, classes)
    assert float(right.mean()) > 0.95
    assert float((weight[1] - weight[0])[0]) > 0
    (weight, _), _ = combine_heads((along, bias), (-along, bias), x, classes)
    assert float((weight[1] - weight[0])[0]) > 0, "a head that is wrong counts nothing"
    (_, _), same = combine_heads((along, bias), (zero, bias), x, classes)
    assert bool((same == (x[:, 0].sign() == 2 * classes - 1)).all())


def test_weights_that_overfit_are_not_preferred() -> None:
    """The classes are random: each row is scored with weights fitted on the others."""
    shares = []
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        x, classes = torch.randn(40, 6, generator=draw), torch.randint(2, (40,), generator=draw)
        first, second = ((torch.randn(2, 6, generator=draw), torch.zeros(2)) for _ in range(2))
        shares.append(float(combine_heads(first, second, x, classes)[1].mean()))
    assert sum(shares) / len(shares) < 0.51
    (_, _), alone = combine_heads(first, second, x[:1], classes[:1])
    assert alone.shape == (1,)


def test_select_labels_keeps_the_rows_of_shared_labels(bert: Backbone) -> None:
    head = fresh_delta(bert, "lora").head
    assert head is not None
    first, second, *_ = head.labels
    selected = head.select_labels(("new", second, first))
    assert selected is not None
    assert not selected.weight[0].any()
    torch.testing.assert_close(selected.weight[1] - selected.weight[2], head.weight[1] - head.weight[0])
    torch.testing.assert_close(selected.bias[1] - selected.bias[2], head.bias[1] - head.bias[0])
    assert head.select_labels(("new", first)) is None, "of one label alone nothing is known"


def test_a_neighbours_head_is_combined_only_where_it_helps(bert: Backbone) -> None:
    task, rows, held_out = (
        Classification(labels_of("mood")),
        prepared_rows(bert, "mood", 12),
        prepared_rows(bert, "mood", 30, seed=2),
    )
    train_context, held_out_context = ForwardContext(bert, None, rows), ForwardContext(bert, None, held_out)
    start = task.closed_form_start(train_context, held_out_context)
    assert start.head is not None
    negated = start.head.map(torch.neg)
    assert task.with_transferred_head(start, negated, held_out_context).mean_quality >= start.mean_quality
    best = task.closed_form_start(held_out_context, held_out_context).head
    assert best is not None
    assert task.with_transferred_head(start, best, held_out_context).mean_quality >= start.mean_quality
    assert (
        task.with_transferred_head(start, replace(best, labels=("x", "y", "z")[: len(best.labels)]), held_out_context)
        is start
    )


def test_the_best_neighbour_is_a_single_delta(bert: Backbone) -> None:
    context = ForwardContext(bert, None, prepared_rows(bert, "mood", 12))
    begin = Classification(labels_of("mood")).closed_form_start(context, context)

    def candidate(quality: float, *names: str, again: bool = False) -> WarmStartCandidate:
        start = replace(begin, held_out_quality=torch.full_like(begin.held_out_quality, quality))
        sources = tuple(
            (Neighbour(n, fresh_delta(bert, "bitfit"), is_previous_version=again), 1 / len(names)) for n in names
        )
        return WarmStartCandidate(start, start, sources)

    good, better = candidate(0.5, "a@1"), candidate(0.6, "b@1")
    assert best_neighbour([good, better, candidate(0.9, "own@1", again=True), candidate(0.8, "a@1", "b@1")]) is better
    assert best_neighbour([]) is None
