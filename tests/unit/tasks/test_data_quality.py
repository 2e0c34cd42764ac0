"""Warnings about suspicious rows: what is found, where, and what sound rows do not give rise to."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import Conversation, LabelledTexts, Message
from tasks.data_quality import held_out_warnings, is_nearly_empty, label_key, rows_as_read_warnings
from tasks.rows import GenerationTarget
from tasks.source_spec import Split

Rows = Sequence[tuple[Any, Any]]


def sound(count: int, *, start: int = 0) -> list[tuple[Any, Any]]:
    return [(f"sound text {number}", "ab"[number % 2]) for number in range(start, start + count)]


def labelled(rows: Rows) -> LabelledTexts:
    return LabelledTexts(tuple(text for text, _ in rows), tuple(target for _, target in rows))


def generation(text: str) -> GenerationTarget:
    return GenerationTarget(text, (text,))


def warnings(train: Rows, *, validation: Rows = (), test: Rows = ()) -> list[str]:
    """Return the warnings of rows as they were read."""
    splits: dict[Split, Rows] = {"train": train, "validation": validation, "test": test}
    labels = sorted({target for _, target in train if isinstance(target, str)})
    return list(rows_as_read_warnings({split: labelled(rows) for split, rows in splits.items() if rows}, labels))


def test_sound_rows_give_no_warning() -> None:
    assert not warnings(sound(40), validation=sound(60, start=100), test=sound(20, start=200))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Spam", "spam"),
        ("spam ", "spam"),
        ("not  spam", "not spam"),
        ("not_spam", "not-spam"),
        ('"spam"', "spam"),
        ("“spam”", "spam"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff53pam", "spam"),  # full-width
        ("spam\u200b", "spam"),  # a space of no width
        ("spam\u00a0", "spam"),
        ("1.0", "1"),
        ("Straße", "STRASSE"),
    ],
)
def test_labels_that_look_alike_are_named(one: str, other: str) -> None:
    rows = [(f"text {number}", (one, other, "else")[number % 3]) for number in range(9)]
    (warning,) = warnings(rows)
    assert re.fullmatch(r"labels (.+), (.+) look alike; write them in one way if they are one label", warning)
    named = warning.removeprefix("labels ").partition(" look")[0].split(", ")
    assert len(set(named)) == 2, "the two are printed alike"


@pytest.mark.parametrize("labels", [("C", "C++"), ("yes", "no"), ("1", "2"), ("nan", "inf"), ("-", "_"), ("a", "ä")])
def test_labels_that_differ_are_not_alike(labels: tuple[str, str]) -> None:
    assert label_key(labels[0]) != label_key(labels[1])


@given(st.text(min_size=1))
def test_the_case_and_spaces_of_a_label_do_not_count(label: str) -> None:
    assert label_key(f" {label}\t") == label_key(label) or not label.strip()


def test_texts_in_two_splits_are_counted_and_located() -> None:
    test = [*sound(3, start=500), ("SOUND  text 4", "a"), ("sound text 7", "b")]
    assert warnings(sound(40), test=test) == [
        "test: 2 of 5 rows (40 %) have a text of train (rows 4, 5), where scores count memory; keep each text "
        "in one split"
    ]
    (warning,) = warnings(sound(40), validation=sound(60, start=100), test=sound(4, start=100))
    assert warning.startswith("test: 4 of 4 rows (100 %) have a text of validation (rows 1, 2, 3, 4), ")


def test_pairs_are_compared_as_pairs() -> None:
    train = [((f"question {number}", "the same passage"), "ab"[number % 2]) for number in range(40)]
    assert not warnings(train, test=[(("another question", "the same passage"), "a")])
    assert "have a text of train (row 1)" in warnings(train, test=[(("Question 3", "the same passage"), "b")])[0]


def test_texts_with_several_targets_are_located() -> None:
    rows = [*sound(40), ("sound text 2", "b"), ("Sound text 2", "b")]
    (warning,) = warnings(rows)
    assert warning.startswith("1 of 40 different texts have several targets (rows train 3 and train 41); ")
    numbers = [(f"sound text {number}", number / 7) for number in range(20)]
    assert "several targets" in warnings([*numbers, ("sound text 4", 0.1)])[0]
    written = [(f"sound text {number}", generation("a text")) for number in range(20)]
    assert not warnings([*written, ("sound text 2", generation("another"))])


def test_single_rows_and_imbalance_are_named() -> None:
    (single,) = warnings([*sound(8), ("a third", "c")])
    assert single == "train: label 'c' (1 of 3 labels) has one row; give more, or drop the label"
    rows = [(f"ham number {number}", "ham") for number in range(38)] + [("buy it", "spam"), ("buy now", "spam")]
    (imbalance,) = warnings(rows)
    assert imbalance.startswith("train: 38 of 40 rows (95 %) have label 'ham', 2 have 'spam': ")


def test_copies_within_train_are_counted() -> None:
    rows = sound(20)
    assert "80 of 100 rows (80 %) repeat another row" in warnings(rows * 5)[0]
    assert not warnings([*sound(40), ("sound text 3", "b")])
    written = [("one text", generation(f"text {number}")) for number in range(20)]
    assert not warnings(written)


def test_nearly_empty_texts_are_located() -> None:
    (warning,) = warnings([*sound(40), ("  ", "a"), ("nan", "b"), ("ok", "a")])
    assert warning.startswith("train: 2 of 43 rows (4.65 %) have a text that is nearly empty")
    assert "(rows 41, 42)" in warning
    assert all(is_nearly_empty(text) for text in ("…", "?", "N/A", "\u200b", "7"))
    assert not any(is_nearly_empty(text) for text in ("hi", "42", "☕", "否"))


def test_empty_targets_are_located() -> None:
    rows = [(f"sound text {number}", generation(f"answer {number}")) for number in range(40)]
    assert not warnings(rows, test=[("another text", generation("-"))])
    (warning,) = warnings([*rows, ("one", generation("")), ("two", generation(" \n\t")), ("three", generation("3"))])
    assert warning == (
        "train: 2 of 43 rows (4.65 %) have an empty target (rows 41, 42), so that the right answer is to write "
        "nothing; mend or drop them"
    )
    (warning,) = warnings(rows, test=[("another text", generation("answer")), ("a third", generation("\u00a0"))])
    assert warning.startswith("test: 1 of 2 rows (50 %) have an empty target (row 2), ")


@pytest.mark.parametrize(("learned", "count"), [(True, 1), (False, 0)])
def test_an_empty_turn_counts_where_it_is_learned(learned: bool, count: int) -> None:
    messages = (Message("user", "hello"), Message("assistant", " ", learned=learned), Message("user", "go on"))
    empty_targets = [w for w in warnings([(Conversation(messages), generation("an answer"))]) if "empty target" in w]
    assert len(empty_targets) == count


@pytest.mark.parametrize("target", ["", " ", 0.0])
def test_targets_of_other_kinds_are_not_texts_to_generate(target: str | float) -> None:
    rows = [(f"sound text {number}", target) for number in range(4)]
    assert not any("empty target" in warning for warning in warnings(rows))


def test_few_validation_rows_and_absent_labels_are_named() -> None:
    splits: dict[Split, LabelledTexts] = {"train": labelled(sound(40))}
    splits |= {"validation": labelled(sound(50)), "test": labelled(sound(40))}
    assert not list(held_out_warnings(splits, ["a", "b"]))
    splits |= {"validation": labelled(sound(49)), "test": labelled([("only one", "a")])}
    absent, few = held_out_warnings(splits, ["a", "b"])
    assert absent.startswith("test: no row has label 'b' (1 of 2 labels)")
    assert few.startswith("validation: 49 rows, of at least 50 ")


def test_a_warning_never_quotes_a_text() -> None:
    secret = "the account number of Ms Miller"
    rows = [*sound(20), (secret, "a"), (secret, "b"), (secret, "a"), (f"{secret}.", "c")]
    found = warnings(rows * 3, test=[(secret, "a")])
    assert len(found) >= 3
    assert not any("Miller" in warning for warning in found)
