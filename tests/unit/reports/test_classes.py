"""Per-class scores, confusions and reliability: against scikit-learn, and on the page."""

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sqlalchemy import select

from continual.kinds import Answer
from continual.kinds.answer_counts import MAX_CONFUSED_PAIRS, RELIABILITY_BINS, count_answers
from continual.kinds.classification import Classification
from continual.reports.classes import class_report, confusion_matrix
from continual.reports.html import stream_page
from continual.reports.report import stream_report
from registry import AnswerCounts, DatabaseDamaged, DataRecord, Registry
from registry.schema.tables import Delta
from tests.helpers.pages import HOSTILE, Parsed, leaves
from tests.helpers.registries import accuracy, begin, delta_record, make_registry, task_record

LABELS = ("a", "b", "c", "d")
ANSWER = st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS), st.integers(1, 1000))


def count(rows: list[tuple[str, str, float]], labels: tuple[str, ...] = LABELS) -> AnswerCounts:
    """Count rows of the true label, the answer and its probability."""
    truth: Any = SimpleNamespace(truth=[row[0] for row in rows])
    counts = count_answers(Classification(labels), truth, [Answer(answer, score) for _, answer, score in rows])
    assert counts is not None
    return counts


def learn_counted(
    registry: Registry, task: str, counts: AnswerCounts | None, *, labels: tuple[str, ...] = LABELS, number: int = 0
) -> str:
    """Register a task of the stream `core` whose answers were counted; the name of its delta."""
    data = DataRecord(
        spec={}, folder=None, seed=0, fingerprints={"test": "f"}, rows={"test": 8}, answers=counts, warnings=("few",)
    )
    with registry.unit_of_work() as unit:
        unit.add_task(task_record(task, labels=labels))
        scores = [accuracy(0.5), accuracy(0.5, split="validation")]
        delta = unit.add_delta(delta_record(registry, task, labels=labels, data=data), scores=scores)
        unit.mark_learned("core", number, delta=delta)
    return delta


@settings(max_examples=30, deadline=None)
@given(st.lists(ANSWER, min_size=1, max_size=40))
def test_values_are_those_of_scikit_learn(drawn: list[Any]) -> None:
    rows = [(truth, answer, permille / 1000) for truth, answer, permille in drawn]
    truth, answers = [row[0] for row in rows], [row[1] for row in rows]
    counts = count(rows)
    data = DataRecord(spec={}, folder=None, seed=0, fingerprints={}, rows={}, answers=counts)
    report = class_report(SimpleNamespace(data=data, labels=LABELS))  # type: ignore[arg-type]
    expected = sk.classification_report(truth, answers, labels=LABELS, output_dict=True, zero_division=0)
    for entry in report["per_class"]:
        theirs = expected[entry["label"]]
        ours = (entry["precision"], entry["recall"], entry["f1"], entry["support"])
        assert ours == pytest.approx(tuple(theirs[key] for key in ("precision", "recall", "f1-score", "support")))
    assert confusion_matrix(report) == sk.confusion_matrix(truth, answers, labels=LABELS).tolist()
    right, scores = [a == b for a, b in zip(truth, answers, strict=True)], [row[2] for row in rows]
    shares, means = calibration_curve(right, scores, n_bins=RELIABILITY_BINS) if any(right) else (None, None)
    filled = [entry for entry in report["reliability"] if entry["rows"]]
    if shares is not None and not all(right):
        assert [entry["accuracy"] for entry in filled] == pytest.approx(shares)
        assert [entry["confidence"] for entry in filled] == pytest.approx(means)
    assert sum(entry["rows"] for entry in filled) == len(rows)


def test_the_counts_of_many_labels_are_bounded() -> None:
    labels = tuple(f"{i:02}" for i in range(70))
    rows = [(a, b, 0.5) for a in labels for b in labels if a != b] + [("00", "01", 0.5)]
    counts = count(rows, labels)
    assert len(counts.confused) == MAX_CONFUSED_PAIRS < len(rows)
    assert counts.confused[0] == (0, 1, 2), "the most frequent pair is first"
    assert sum(counts.support) == len(rows)


def test_counts_are_stored_with_the_delta_and_reported(tmp_path: Path) -> None:
    counts = count([("a", "a", 0.95), ("a", "b", 0.55), ("b", "b", 0.91), ("c", "b", 0.31)])
    with make_registry(tmp_path) as registry:
        begin(registry, "topic", "number")
        delta = learn_counted(registry, "topic", counts)
        learn_counted(registry, "number", None, labels=(), number=1)
        stored = registry.delta(delta)
        assert stored.data is not None
        assert stored.data.answers == counts
        document = stream_report(registry, "core")
        page = stream_page(registry, document)
    topic, number = document["per_task"]
    assert topic["per_class"][1] == {
        "label": "b", "precision": 1 / 3, "recall": 1.0, "f1": 0.5, "support": 1, "correct": 1
    }  # fmt: skip
    assert topic["confused_labels"] == [
        {"label": "a", "answered": "b", "rows": 1},
        {"label": "c", "answered": "b", "rows": 1},
    ]
    assert number["per_class"] == number["reliability"] == []
    parsed = Parsed(page)
    assert "Classes of topic" in parsed.inside("h2")
    assert "Classes of number" not in parsed.inside("h2")
    assert "Reliability of the probabilities" in parsed.inside("h2")
    assert "topic: of 2 answers with a probability of 0.9 to 1.0, 100% are right" in " ".join(parsed.inside("title"))
    assert "0.333" in parsed.inside("bdi")


def test_hostile_labels_are_escaped(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def tags(folder: Path, labels: tuple[str, ...]) -> list[tuple[str, ...]]:
        rows = [(a, b, 0.5) for a, b in zip(labels, (*labels[1:], labels[0]), strict=True)]
        with make_registry(folder) as registry:
            begin(registry, "topic")
            learn_counted(registry, "topic", count(rows, labels), labels=labels)
            page = stream_page(registry, stream_report(registry, "core"))
        assert leaves(page) == []
        return Parsed(page).tags

    plain = tags(tmp_path, tuple(f"label{i}" for i in range(len(HOSTILE))))
    assert tags(tmp_path_factory.mktemp("hostile"), HOSTILE) == plain


def test_many_labels_have_no_heat_map(tmp_path: Path) -> None:
    labels = tuple(f"label{i:02}" for i in range(40))
    rows = [(label, labels[0], 0.5) for label in labels]
    with make_registry(tmp_path) as registry:
        begin(registry, "topic")
        learn_counted(registry, "topic", count(rows, labels), labels=labels)
        page = Parsed(stream_page(registry, stream_report(registry, "core")))
    assert "Answers of topic" not in " ".join(page.of("aria-label"))
    assert "Pairs of labels of topic that are confused most often" in page.inside("span")


def test_damaged_counts_are_damage_of_the_registry(tmp_path: Path) -> None:
    changes: tuple[dict[str, Any], ...] = (
        *({"support": [1]}, {"support": "four"}, {"correct": [0, -1, 0, 0]}, {"confused": [[0, 4, 1]]}, {"bins": []}),
        {name: [1] for name in ("support", "answered", "correct")},  # the delta has four labels
    )
    with make_registry(tmp_path) as registry:
        begin(registry, "topic")
        delta = learn_counted(registry, "topic", count([("a", "a", 0.5)]))
        sound = registry.delta(delta).data
        assert sound
        for changed in changes:
            data = asdict(sound)
            with registry.unit_of_work() as unit:
                row = unit.session.scalars(select(Delta)).one()
                row.data = data | {"answers": data["answers"] | changed}
            with pytest.raises(DatabaseDamaged):
                registry.delta(delta)


def test_a_delta_of_an_older_release_has_no_counts(tmp_path: Path) -> None:
    with make_registry(tmp_path) as registry:
        begin(registry, "topic")
        stored = registry.delta(learn_counted(registry, "topic", None))
    assert class_report(stored) == class_report(replace(stored, data=None))
    assert np.size(class_report(stored)["per_class"]) == 0
