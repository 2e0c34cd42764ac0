"""Every kind of task, built in or of another package: rows become losses, outputs and answers that its metrics take.

A kind brings nothing of its own here: rows are made for its type of targets, as its line of `KIND_SCHEMAS` states it.
"""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached, load_delta
from continual.kinds import KINDS, ForwardContext, Kind, kind_from_metadata, kind_metadata, kind_of_delta
from continual.kinds.scoring import misrouted, score_answers, secondary_scores
from continual.learning.prepared import PreparedTask, prepare_task
from continual.metrics import metrics_of, required_inputs
from continual.training.objective import evaluate_delta
from continual.transfer.warm_start import from_scratch
from tasks import KIND_SCHEMAS, AnswerSpan, GenerationTarget, LabelledTexts, TaskData, TaskSpec
from tasks.kind_schemas import TargetType
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS

WORDS = {"good": "superb lovely bright", "bad": "awful dull broken"}
TEMPLATE = {"text": "{{ text }} the {{ mask }}", "words": {"good": "superb", "bad": "awful"}}
Row = tuple[Any, Any]
all_kinds = pytest.mark.parametrize("name", list(KINDS))


def label_row(draw: random.Random) -> Row:
    label = draw.choice(sorted(WORDS))
    return " ".join(draw.choices(WORDS[label].split(), k=3)), label


def number_row(draw: random.Random) -> Row:
    text, label = label_row(draw)
    return text, (1.0 if label == "good" else -1.0) + draw.uniform(-0.1, 0.1)


def answer_row(draw: random.Random) -> Row:
    words = draw.sample(["tower", "metro", "wave", "coral", "sugar", "honey"], k=4)
    passage, answer = " ".join(words), words[draw.randrange(4)]
    return ("the street", passage), (AnswerSpan(answer, passage.index(answer)),)


def text_row(draw: random.Random) -> Row:
    text, label = label_row(draw)
    target = " sugar" if label == "good" else " lemon"
    return text, GenerationTarget(target, (target,))


ROWS: dict[TargetType, Callable[[random.Random], Row]] = {
    "labels": label_row,
    "numbers": number_row,
    "answers": answer_row,
    "texts": text_row,
}


def rows(targets: TargetType, count: int, *, seed: int) -> LabelledTexts:
    draw = random.Random(seed)
    texts, truth = zip(*(ROWS[targets](draw) for _ in range(count)), strict=True)
    return LabelledTexts(texts, truth)


def task_data(name: str) -> TaskData:
    """A task of a kind, with 24 train rows."""
    kind = "classification" if name == "template" else name
    schema = KIND_SCHEMAS[kind]
    entry = {
        "name": "task",
        "kind": kind,
        "source": {"path": "json", "data_files": {"train": "none.jsonl"}},
        "text": ["question", "context"] if schema.targets == "answers" else "text",
        schema.target_column: "target",
        "template": TEMPLATE if name == "template" else None,
        "method": {"name": "lora", "rank": 2},
        "warm_start": "scratch",
        "budget": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "max_length": 24},
    }
    train, validation, test = (rows(schema.targets, count, seed=seed) for seed, count in enumerate((24, 8, 8)))
    labels = tuple(sorted({str(label) for label in train.targets})) if schema.targets == "labels" else ()
    return TaskData(TaskSpec.model_validate(entry), labels, train, validation, test)


@cache
def prepared(name: str) -> PreparedTask:
    """A task of a kind on the first tiny backbone that can learn it."""
    data = task_data(name)
    for family in TINY_CONFIGS:
        backbone = backbone_of(family)
        if not list(KINDS[name].incompatibilities(backbone, data.spec)):
            return prepare_task(backbone, data)
    pytest.fail(f"no tiny backbone can learn a {name} task")


@cache
def learned(name: str) -> tuple[PreparedTask, Delta]:
    """A task, and its delta after one epoch."""
    task = prepared(name)
    train, held_out, _ = task.frozen_views
    scratch = from_scratch(task.kind.closed_form_start(train, held_out))
    return task, task.training_run(scratch, seed=0).run().delta


@all_kinds
def test_a_file_holds_all_that_answering_needs(name: str) -> None:
    task, delta = learned(name)
    metadata = kind_metadata(task.kind)
    assert json.loads(json.dumps(metadata)) == metadata
    assert not metadata or kind_from_metadata(metadata) == task.kind
    assert kind_of_delta(load_delta(delta.to_bytes())) == task.kind


@all_kinds
def test_every_row_is_prepared_in_order(name: str) -> None:
    task = prepared(name)
    assert len(task.train.tokens) >= len(task.data.train)
    assert len(task.train.truth) == len(task.data.train)
    classes, count = task.kind.signature_classes(task.train)
    assert classes.shape == (len(task.data.train),)
    assert 0 <= int(classes.min()) <= int(classes.max()) < count


@all_kinds
def test_a_closed_form_start_has_a_quality_of_each_held_out_row(name: str) -> None:
    task = prepared(name)
    train, held_out, _ = task.frozen_views
    start = task.kind.closed_form_start(train, held_out)
    assert start.held_out_quality.shape == (len(task.data.validation),)
    assert bool(torch.isfinite(start.held_out_quality).all())
    empty = task.kind.zero_head(task.backbone)
    assert (start.head is None) == (empty is None)
    if start.head and empty:
        assert (start.head.weight.shape, start.head.labels) == (empty.weight.shape, empty.labels)
        back = task.kind.to_standard_units(task.kind.to_task_units(start.head))
        torch.testing.assert_close(back.weight, start.head.weight)


@all_kinds
def test_a_batchs_loss_is_the_weighted_mean_of_its_parts(name: str) -> None:
    task, delta = learned(name)
    trainable = delta.trainable(task.backbone.device, 0)
    batches = [0, 1, 2, 3, 4], [0, 1], [2, 3, 4]
    with attached(task.backbone, trainable):
        losses = [task.kind.loss(task.backbone, trainable, task.train, batch) for batch in batches]
    whole, *parts = losses
    assert whole.dim() == 0
    assert whole.requires_grad
    total, *weights = (task.kind.loss_weight(task.train, batch) for batch in batches)
    assert total == pytest.approx(sum(weights))
    mean = sum(loss.item() * weight for loss, weight in zip(parts, weights, strict=True)) / total
    assert whole.item() == pytest.approx(mean, rel=1e-4)


@all_kinds
def test_outputs_are_the_same_to_the_bit_and_answers_suit_the_metrics(name: str) -> None:
    task, delta = learned(name)
    first, second = (task.kind.outputs(ForwardContext(task.backbone, delta, task.test), delta.head) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {len(tensor) for tensor in first.values()} == {len(task.data.test)}
    answers = task.kind.answers(task.backbone, first, task.test)
    assert len(answers) == len(task.data.test)
    assert all(0 <= answer.score <= 1 for answer in answers if answer.score is not None)
    baseline = task.kind.baseline_answers(task.data.train, task.test)
    assert baseline is None or len(baseline) == len(answers)
    secondary = secondary_scores(ForwardContext(task.backbone, delta, task.test), task.kind, answers)
    assert all(map(math.isfinite, secondary.values()))
    kind = task.kind.metric_kind
    for metric in (name for name in metrics_of(kind) if "target_lengths" not in required_inputs(name, kind=kind)):
        for scored in filter(None, (answers, misrouted(task.kind, task.test), baseline)):
            assert math.isfinite(score_answers(task.kind, metric, task.test, scored)), metric


@all_kinds
def test_training_never_ends_below_its_start_on_the_validation_rows(name: str) -> None:
    task, delta = learned(name)
    train, held_out, _ = task.frozen_views
    start = task.training_run(from_scratch(task.kind.closed_form_start(train, held_out)), seed=0).start
    metric = task.data.spec.metric
    scores = [
        evaluate_delta(task.backbone, task.kind, scored, rows=task.validation, metric=metric).score
        for scored in (start.quantise_to_float16(), delta)
    ]
    assert scores[1] >= scores[0] - 1e-6


@all_kinds
def test_the_validation_loss_is_the_loss_of_training(name: str) -> None:
    task, delta = learned(name)
    view = ForwardContext(task.backbone, delta, task.validation)
    _, loss = task.kind.outputs_and_loss(view, delta)
    rows = range(len(task.data.validation))
    with torch.no_grad(), attached(task.backbone, delta):
        expected = float(task.kind.loss(task.backbone, delta, task.validation, rows))
    assert loss == pytest.approx(expected, rel=1e-3)
    assert Kind.loss_from(task.kind, view, delta, None) == pytest.approx(expected, rel=1e-3)


@all_kinds
def test_inference_needs_no_targets(name: str) -> None:
    task, delta = learned(name)
    unlabelled = replace(task.data.test, targets=())
    inputs = task.kind.prepare(task.backbone, unlabelled, max_length=24)
    outputs = task.kind.outputs(ForwardContext(task.backbone, delta, inputs), delta.head)
    assert len(task.kind.answers(task.backbone, outputs, inputs)) == len(task.data.test)


def test_a_kind_is_a_generic_subclass_with_its_two_constants() -> None:
    for kind in KINDS.values():
        assert issubclass(kind, Kind)
        assert kind.metric_kind in KIND_SCHEMAS
        assert isinstance(kind.generates, bool)


def test_an_encoder_alone_is_refused_by_the_kinds_that_need_a_language_model(bert: Backbone) -> None:
    refusing = {name for name, kind in KINDS.items() if list(kind.incompatibilities(bert, task_data(name).spec))}
    assert {"generation", "template"} <= refusing
    assert not {"classification", "regression", "span"} & refusing
