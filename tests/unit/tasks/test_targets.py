"""Targets of every kind of task: columns, parsing, references, templates and sampling."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import (
    KIND_SCHEMAS,
    AnswerSpan,
    DataError,
    GenerationTarget,
    LabelledTexts,
    TaskData,
    TaskSpec,
    Template,
    load_task,
)
from tasks.rows import sample, sample_shots, split_off
from tasks.targets import parse_number

KEYS: dict[str, dict[str, Any]] = {
    "classification": {"text": "text", "label": "label"},
    "regression": {"text": "text", "label": "score"},
    "span": {"text": ["question", "context"], "answers": "answers"},
    "generation": {"text": "text", "target": "target"},
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(folder: Path, kind: str, train_rows: list[dict[str, Any]], **keys: Any) -> TaskData:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train_rows))
    files = dict.fromkeys(("train", "validation", "test"), "rows.jsonl")
    entry = {"name": "t", "kind": kind, "source": {"path": "json", "data_files": files}} | KEYS[kind] | keys
    return load_task(TaskSpec.model_validate(entry), folder=folder, seed=0)


def spec(kind: str, **keys: Any) -> TaskSpec:
    source = {"path": "json", "data_files": {"train": "rows.jsonl"}}
    return TaskSpec.model_validate({"name": "t", "kind": kind, "source": source} | KEYS[kind] | keys)


@pytest.mark.parametrize("kind", KEYS)
def test_the_first_metric_of_a_kind_is_its_default(kind: str) -> None:
    metrics = KIND_SCHEMAS[kind].metrics
    assert spec(kind).metric == metrics[0]
    for metric in metrics:
        assert spec(kind, metric=metric).metric == metric
    with pytest.raises(ValidationError, match=f"a {kind} task is scored by one of {', '.join(metrics)}"):
        spec(kind, metric="zzz")


@pytest.mark.parametrize(
    ("kind", "keys", "message"),
    [
        ("regression", {"label": None}, "a regression task must name the column of its numbers, as in `label: label`"),
        ("span", {"answers": None}, "a span task must name the column of its answers, as in `answers: answers`"),
        ("generation", {"target": None}, "must name the column of its targets, as in `target: target`"),
        (
            "generation",
            {"label": "x"},
            "has no use for 'label', only for target, references, prompt, completion, messages, system",
        ),
        ("span", {"text": "text"}, r"a span task reads two columns, as in `text: \[question, context\]`"),
        ("regression", {"template": {"text": "{{ mask }}", "words": {"a": "b", "c": "d"}}}, "no use for 'template'"),
    ],
)
def test_a_missing_key_of_a_kind_is_named(kind: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(kind, **keys)


def test_numbers_are_read_from_numbers_and_texts(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "score": value} for i, value in enumerate(["1", "2.5", "-1e3"])]
    data = load(tmp_path, "regression", rows)
    assert data.train.targets == (1.0, 2.5, -1000.0)
    assert (data.labels, data.train.labels) == ((), ())


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_formatting(value: float) -> None:
    assert parse_number(value) == parse_number(repr(value)) == value


@pytest.mark.parametrize("value", [None, True, "", "one", "nan", "inf", math.inf, math.nan, [1], "1,5"])
def test_invalid_numbers_are_refused(value: object) -> None:
    assert parse_number(value) is None


def test_a_row_without_a_number_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'t', train: column 'score', row 2: 'high' is not a number; .*mend the row"):
        load(tmp_path, "regression", [{"text": "a", "score": "1"}, {"text": "b", "score": "high"}])
    with pytest.raises(DataError, match=r"'t', train: at least two different numbers are needed; got only 1\.0"):
        load(tmp_path, "regression", [{"text": "a", "score": 1}] * 3)


def squad(*answers: tuple[str, int]) -> dict[str, Any]:
    return {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}


def question(answers: Any) -> list[dict[str, Any]]:
    return [{"question": "who", "context": "ann met bob, and bob left", "answers": answers}]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (squad(("bob", 8)), (AnswerSpan("bob", 8),)),
        (squad(("bob", 17), ("ann", 0)), (AnswerSpan("bob", 17), AnswerSpan("ann", 0))),
        (["bob", "Robert"], (AnswerSpan("bob", 8), AnswerSpan("Robert", None))),
        ("ann", (AnswerSpan("ann", 0),)),
    ],
)
def test_answers_are_read_in_both_formats(tmp_path: Path, answers: Any, expected: tuple[AnswerSpan, ...]) -> None:
    data = load(tmp_path, "span", question(answers))
    assert data.train.targets == (expected,)
    assert data.train.texts == (("who", "ann met bob, and bob left"),)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (squad(("bob", 9)), "at character 9 of the passage stands 'ob,', not 'bob'"),
        (squad(("bob", -1)), "at character -1 of the passage"),
        (squad(), "is not answers; .*with at least one answer"),
        (["cy"], "'cy' does not occur in the passage"),
        (["", ""], "does not occur"),
        ({"text": ["bob"]}, "is not answers"),
        (None, "None is not answers"),
    ],
)
def test_invalid_answers_are_reported(tmp_path: Path, answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"'t', train: column 'answers', row 1: .*{message}"):
        load(tmp_path, "span", question(answers))


def test_targets_are_their_own_references_by_default(tmp_path: Path) -> None:
    rows = [{"text": "a", "target": "x", "refs": ["y", "z"]}, {"text": "b", "target": "", "refs": ["v"]}]
    assert load(tmp_path, "generation", rows).train.targets == (
        GenerationTarget("x", ("x",)),
        GenerationTarget("", ("",)),
    )
    targets = load(tmp_path, "generation", rows, references="refs").train.targets
    assert targets == (GenerationTarget("x", ("y", "z")), GenerationTarget("", ("v",)))
    with pytest.raises(DataError, match=r"column 'refs', row 1: .*is not a text or a list of at least one text"):
        load(tmp_path, "generation", [{"text": "a", "target": "x", "refs": []}], references="refs")


def test_rows_without_labels_are_sampled_unstratified(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "target": f"w{i}"} for i in range(30)]
    assert len(load(tmp_path, "generation", rows, shots=4).train) == 4
    data = load(tmp_path, "generation", rows, rows={"train": 7, "test": 3})
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 30, 3)
    assert data.notes[0] == "train: 7 of 30 rows were taken (seed 0)"


VALUES = st.lists(st.tuples(st.text(max_size=2), st.floats(allow_nan=False, width=16)), min_size=1, max_size=30)


@given(VALUES, st.integers(0, 20))
def test_rows_without_labels_are_split_like_others(pairs: list[tuple[str, float]], count: int) -> None:
    rows = LabelledTexts(tuple(text for text, _ in pairs), tuple(value for _, value in pairs))
    remaining, carved = split_off(rows, count, seed=0)
    assert len(remaining) + len(carved) == len(rows)
    if count == 0 or len(set(rows.texts)) == len(rows):
        assert len(carved) <= count
    assert len(remaining) >= 1
    assert not set(remaining.texts) & set(carved.texts)
    assert len(sample(rows, count, seed=0)) == len(sample_shots(rows, count, seed=0)) == min(count, len(rows))


WORDS = {"bad": "awful", "good": "great"}


def test_a_template_has_texts_and_one_mask() -> None:
    template = Template(text="{{ text | trim }}? {{ mask }}, {{ text_pair }}", words=WORDS)
    assert template.split_at_gap(" a {{ b }} ", "c\0") == ("a {{ b }}? ", ", c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ text }}", "it shows it 0 times"),
        ("{{ mask }} {{ mask }}", "it shows it 2 times"),
        ("{{ tekst }} {{ mask }}", "'tekst' is undefined"),
        ("{{ text ", "not a template"),
        ("{{ mask.__class__.__mro__ }}", "unsafe|undefined|not a template"),
        ("{% for i in range(10 ** 9) %}{{ mask }}{% endfor %}", "[Rr]ange"),
    ],
)
def test_invalid_templates_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Template(text=text, words=WORDS)


@given(st.text(), st.text())
def test_any_text_fits_into_a_template(text: str, pair: str) -> None:
    template = Template(text="{{ text }} / {{ text_pair }} / {{ mask }}.", words=WORDS)
    before, after = template.split_at_gap(text, pair)
    assert (before, after) == (f"{text} / {pair} / ".replace("\0", ""), ".")


def test_each_label_needs_its_own_word(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="same word"):
        Template(text="{{ mask }}", words={"a": "x", "b": "x"})
    rows = [{"text": f"t{i}", "label": ["bad", "good", "fair"][i % 3]} for i in range(9)]
    with pytest.raises(DataError, match="a word for every label and no other; the labels are bad, fair, good; words"):
        load(tmp_path, "classification", rows, template={"text": "{{ text }} {{ mask }}", "words": WORDS})
    template = {"text": "{{ text }} {{ mask }}", "words": WORDS | {"fair": "okay"}}
    data = load(tmp_path, "classification", rows, template=template)
    assert data.spec.template == Template.model_validate(template)


def test_a_task_without_a_template_is_dumped_as_before_templates() -> None:
    """Recipes of registered streams are digests of this."""
    keys = "name kind source text label target answers references metric rows shots method warm_start budget"
    assert list(spec("classification").model_dump(mode="json")) == keys.split()
