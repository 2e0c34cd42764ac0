"""Where a head reads is chosen on a causal backbone's rows, kept with the delta, and used wherever it answers."""

import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.backbones.readout import Readout
from continual.deltas import Bank, Delta, attached, average_deltas, load_delta
from continual.features.forward import run_forward, run_mixed_forward
from continual.features.pooling import encode, forward_pooled
from continual.features.random_features import FrozenFeatures
from continual.features.tokens import tokenize
from continual.inference.opinions import DeltaQuery, query_delta
from continual.kinds import ForwardContext, kind_of_delta
from continual.kinds.classification import Classification
from continual.kinds.regression import Regression
from continual.learning import readout
from continual.learning.prepared import PreparedTask, prepare_task
from continual.learning.probes import probe_difference, probe_outputs
from continual.learning.readout import RowsWithFeatures, allowed_readouts, choose_readout, views_at_best_readout
from continual.streams.preflight import incompatibilities
from continual.training.joint import train_jointly
from continual.training.objective import training_objective
from continual.training.training_run import TrainingResult, TrainingRun
from continual.transfer.warm_start import Neighbour, evaluate_candidate, from_scratch
from tasks import Budget, LabelledTexts, Method, TaskData, TaskSpec, Template
from tasks.readout_choice import ReadoutChoice
from tests.conftest import backbone_of
from tests.helpers.tiny_tasks import fresh_delta, head_of, labels_of, perturbed_delta, prepared_rows, rows_of

SHALLOW, SHALLOW_CHOICE = Readout("last", 1), ReadoutChoice(pooling="last", layers=1)


def task_data(method: dict[str, Any] | None = None, *, train: int = 24) -> TaskData:
    spec = TaskSpec.model_validate(
        {
            "name": "mood",
            "source": {"path": "json", "data_files": {"train": "none.jsonl"}},
            "text": "text",
            "label": "label",
            "method": method or {"name": "lora", "rank": 2},
            "warm_start": "scratch",
            "budget": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "max_length": 24},
        }
    )
    train_rows, validation, test = (rows_of("mood", count, seed=seed) for seed, count in enumerate((train, 12, 12)))
    return TaskData(spec, labels_of("mood"), train_rows, validation, test)


def shallow(delta: Delta, pooling: Any = "last") -> Delta:
    return replace(delta, head=replace(head_of(delta), pooling=pooling, layers=1))


@pytest.fixture(scope="module")
def llama() -> Backbone:
    return backbone_of("llama")


@pytest.fixture(scope="module")
def task(llama: Backbone) -> PreparedTask:
    return prepare_task(llama, task_data())


def test_the_readout_of_least_loss_is_chosen(llama: Backbone) -> None:
    rows = prepared_rows(llama, "mood", 40)
    noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    told = noise + 3 * rows.classes[:, None]
    vectors = {Readout("mean"): noise, SHALLOW: told, Readout("last"): noise + 0.5 * rows.classes[:, None]}
    part = RowsWithFeatures(rows, FrozenFeatures(noise, noise, vectors), is_whole=True)
    assert choose_readout(Classification(labels_of("mood")), tuple(vectors), [part]) == SHALLOW
    numbers = LabelledTexts(("purr",) * 40, tuple(map(float, rows.classes)))
    kind = Regression(0.5, 0.5)
    part = replace(part, rows=kind.prepare(llama, numbers, max_length=8))
    assert choose_readout(kind, tuple(vectors), [part, part]) == SHALLOW


def test_the_views_read_what_was_chosen(llama: Backbone, task: PreparedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "choose_readout", lambda kind, candidates, parts: SHALLOW)
    views = views_at_best_readout(task)
    for view in views:
        expected = run_forward(llama, None, forward_pooled(llama, view.rows.tokens, SHALLOW))
        torch.testing.assert_close(view.vectors, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(view.frozen.pooled, encode(llama, view.rows.tokens), rtol=0, atol=1e-5)
    train, held_out, _ = views
    start = task.kind.closed_form_start(train, held_out)
    assert start.head is not None
    assert start.head.readout == SHALLOW
    trained = task.training_run(from_scratch(start), seed=0).run().delta
    again = load_delta(trained.to_bytes())
    assert head_of(again).readout == SHALLOW
    assert probe_difference(llama, again, probe_outputs(llama, trained)).value == 0


def test_the_layers_above_are_not_trained(llama: Backbone) -> None:
    delta = shallow(fresh_delta(llama, "lora")).trainable(llama.device)
    with attached(llama, delta):
        loss = kind_of_delta(delta).loss(llama, delta, prepared_rows(llama, "mood", 4), range(4))
        torch.autograd.backward(loss)
    gradients = {number: delta.values[f"layer.{number}.attn.q/0/B"].grad for number in (0, 1)}
    assert gradients[0] is not None
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


def test_a_sample_of_many_rows_decides(task: PreparedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "MAX_ROWS", 10)
    judged: list[int] = []
    real = Classification.readout_loss

    def counted(kind: Classification, vectors: torch.Tensor, rows: Any) -> float | None:
        judged.append(len(vectors))
        return real(kind, vectors, rows)

    monkeypatch.setattr(Classification, "readout_loss", counted)
    train, held_out, _ = views_at_best_readout(task)
    assert set(judged) == {20}
    assert (len(train.vectors), len(held_out.vectors)) == (24, 12)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_file_may_say_where_the_head_reads(name: str) -> None:
    data = task_data()
    spec = data.spec.model_copy(update={"readout": ReadoutChoice(pooling="last", layers=1)})
    train, held_out, test = views_at_best_readout(prepare_task(backbone_of(name), replace(data, spec=spec)))
    assert {view.readout for view in (train, held_out, test)} == {SHALLOW}
    assert len(train.vectors) == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readout": ReadoutChoice(pooling="last", layers=3)}, r"layers: 3, and backbone 'tiny-llama' has 2"),
        (
            {"readout": SHALLOW_CHOICE, "method": Method.model_validate({"name": "last_layer", "count": 1})},
            r"layers: 1, and the method 'last_layer' changes nothing in the lowest 1",
        ),
        (
            {"readout": SHALLOW_CHOICE, "template": Template(text="{{ text }} {{ mask }}", words={"a": "b", "c": "d"})},
            "answered by its template has no head",
        ),
    ],
)
def test_a_readout_that_cannot_be_is_refused(llama: Backbone, changes: dict[str, Any], message: str) -> None:
    spec = task_data().spec.model_copy(update=changes)
    assert any(re.search(message, problem) for problem in incompatibilities(llama, spec))


def test_an_encoder_reads_as_it_was_pretrained(bert: Backbone) -> None:
    train, _, _ = views_at_best_readout(prepare_task(bert, task_data()))
    assert (train.chosen_readout, train.readout) == (None, bert.readout)


@pytest.mark.parametrize(
    ("method", "depths"),
    [
        ({"name": "lora"}, {1, None}),
        ({"name": "probe"}, {1, None}),
        ({"name": "last_layer", "count": 1}, {None}),
        ({"name": "reft", "layers": [-1]}, {None}),
        ({"name": "auto", "candidates": ["lora", {"name": "last_layer", "count": 1}]}, {None}),
    ],
)
def test_a_layer_that_the_method_changes_is_read(llama: Backbone, method: dict[str, Any], depths: set[Any]) -> None:
    allowed = allowed_readouts(llama, Method.model_validate(method))
    assert {candidate.layers for candidate in allowed} == depths


def test_rows_of_several_readouts_share_a_batch(llama: Backbone) -> None:
    tokens = tokenize(llama, ["purr meow", "the awful dull tower"], max_length=24)
    deltas = {
        "whole": perturbed_delta(llama, "lora"),
        "last": shallow(perturbed_delta(llama, "lora", seed=1)),
        "mean": shallow(perturbed_delta(llama, "prefix", seed=2), "mean"),
    }
    requests = {name: forward_pooled(llama, tokens, head_of(delta).readout) for name, delta in deltas.items()}
    bank = Bank(llama, slots=4)
    for name, delta in deltas.items():
        bank.put(name, delta)
    named = list(requests.items())
    added = dict.fromkeys(deltas, 0)
    results = run_mixed_forward(llama, named, bank.mixed_batch, slots=4, added_tokens=added)
    for name, delta in deltas.items():
        torch.testing.assert_close(results[requests[name]], encode(llama, tokens, delta=delta), rtol=0, atol=1e-5)


def test_a_head_alone_reads_its_layer_although_frozen_features_are_there(llama: Backbone) -> None:
    delta = shallow(fresh_delta(llama, "probe"))
    texts = ("purr meow", "wave")
    frozen = ForwardContext(llama, None, prepared_rows(llama, "mood", 2)).frozen
    with_frozen, alone = (
        query_delta(llama, delta, DeltaQuery(texts, 24, frozen=features)).answers for features in (frozen, None)
    )
    assert [answer.score for answer in with_frozen] == pytest.approx([answer.score for answer in alone], abs=1e-6)


def test_deltas_that_read_elsewhere_train_jointly_as_alone(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "checkpoint_dropout", lambda backbone: nullcontext())
    kind = Classification(labels_of("mood"))
    starts = {"a": shallow(fresh_delta(llama, "lora")), "b": fresh_delta(llama, "lora", seed=1)}

    def run(start: Delta) -> TrainingRun[list[int]]:
        rows, validation = prepared_rows(llama, "mood", 8), prepared_rows(llama, "mood", 4, seed=1)
        budget = Budget(epochs=2, batch_size=4)
        objective = training_objective(
            llama, kind, rows, validation=validation, budget=budget, metric="accuracy", seed=0
        )
        return TrainingRun(llama, start, objective, learning_rate=1e-2, seed=0)

    together = dict(train_jointly({name: run(start) for name, start in starts.items()}, seed=0))
    for name, start in starts.items():
        outcome = together[name]
        assert isinstance(outcome, TrainingResult)
        assert outcome.curve[1].loss == pytest.approx(run(start).run().curve[1].loss, rel=1e-3)


def test_states_below_every_edit_are_cached_up_to_the_layer_that_is_read(llama: Backbone) -> None:
    kind, rows = Classification(labels_of("mood")), prepared_rows(llama, "mood", 8)
    start = shallow(fresh_delta(llama, "probe"))
    losses = []
    for epochs in (1, 2):  # a single epoch is not cached
        objective = training_objective(
            llama,
            kind,
            rows,
            validation=rows,
            budget=Budget(epochs=epochs, batch_size=8),
            metric="accuracy",
            seed=0,
        )
        losses.append(TrainingRun(llama, start, objective, learning_rate=0.0, seed=0).run().curve[1].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_warm_start_reads_where_its_delta_was_trained_to(llama: Backbone, task: PreparedTask) -> None:
    delta = shallow(perturbed_delta(llama, "lora"))
    train, held_out, _ = task.frozen_views
    candidate = evaluate_candidate(
        task.kind, (Neighbour("x@1", delta), 1.0), delta=delta, rows=train, held_out=held_out
    )
    assert candidate.start.head is not None
    assert candidate.start.head.readout == SHALLOW
    plain = replace(candidate.start, head=replace(candidate.start.head, layers=None))
    view = ForwardContext(llama, delta, held_out.rows)
    assert task.kind.with_transferred_head(plain, head_of(delta), view) is plain, "another readout is no evidence"


def test_heads_are_averaged_where_they_read_the_same(llama: Backbone) -> None:
    first, other = shallow(perturbed_delta(llama, "lora")), perturbed_delta(llama, "lora", seed=1)
    for second, shares in ((other, (1.0, 0.0)), (shallow(other), (0.5, 0.5))):
        average = average_deltas(llama, first.settings, [first, second], [0.5, 0.5])
        assert average is not None
        assert head_of(average).readout == SHALLOW
        heads = (head_of(first).bias, head_of(second).bias)
        expected = sum(share * bias for share, bias in zip(shares, heads, strict=True))
        torch.testing.assert_close(head_of(average).bias, expected)
