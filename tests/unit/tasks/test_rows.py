"""Sampling rows: held-out splits, stratification, and independence of row order."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import DataError, LabelledTexts, Text
from tasks.rows import sample, sample_shots, split_off

TEXTS: st.SearchStrategy[Text] = st.one_of(st.text(max_size=2), st.tuples(st.text(max_size=1), st.text(max_size=1)))
PAIRS = st.lists(st.tuples(TEXTS, st.sampled_from("abcd")), min_size=1, max_size=40)


def rows_of(pairs: list[tuple[Text, str]]) -> LabelledTexts:
    return LabelledTexts(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def pairs_of(rows: LabelledTexts) -> Counter[tuple[Text, str]]:
    return Counter(zip(rows.texts, rows.labels, strict=True))


@given(PAIRS, st.integers(0, 50), st.integers(0, 5))
def test_splitting_partitions_the_rows(pairs: list[tuple[Text, str]], count: int, seed: int) -> None:
    rows = rows_of(pairs)
    remaining, carved = split_off(rows, count, seed=seed)
    assert pairs_of(remaining) + pairs_of(carved) == pairs_of(rows)
    if count == 0 or len(set(rows.texts)) == len(rows):
        assert len(carved) <= count
    assert set(remaining.labels) == set(rows.labels)
    assert not set(remaining.texts) & set(carved.texts)


@given(PAIRS, st.integers(1, 50), st.integers(0, 5))
def test_nothing_is_carved_only_where_no_text_can_be_spared(
    pairs: list[tuple[Text, str]], count: int, seed: int
) -> None:
    rows = rows_of(pairs)
    if not split_off(rows, count, seed=seed)[1]:
        for text in set(rows.texts):
            assert set(rows_of([pair for pair in pairs if pair[0] != text]).labels) < set(rows.labels)


@pytest.mark.parametrize(("texts", "copies"), [(20, 5), (10, 2), (10, 3), (60, 7), (4, 50)])
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_repeated_texts_are_carved_by_whole_groups(texts: int, copies: int, share: float) -> None:
    rows = rows_of([(f"text {i}", "ab"[i % 2]) for i in range(texts) for _ in range(copies)])
    remaining, carved = split_off(rows, round(share * len(rows)), seed=0)
    assert set(Counter(carved.texts).values()) == {copies}
    assert set(carved.labels) == set(remaining.labels) == {"a", "b"}
    assert len(carved) <= max(share * len(rows), 2 * copies)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=4), st.integers(0, 5), st.data())
def test_splitting_keeps_label_proportions(sizes: list[int], seed: int, data: st.DataObject) -> None:
    labels = [name for name, size in zip("abcd", sizes, strict=False) for _ in range(size)]
    rows = rows_of([(f"text {i}", label) for i, label in enumerate(labels)])
    count = data.draw(st.integers(0, len(rows) // 2))
    carved = Counter(split_off(rows, count, seed=seed)[1].labels)
    assert carved.total() == count
    for label, size in Counter(labels).items():
        assert abs(carved[label] - count * size / len(rows)) < 1


@given(PAIRS, st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_sampling(pairs: list[tuple[Text, str]], count: int, seed: int, keep: bool) -> None:
    rows = rows_of(pairs)
    counts = Counter(rows.labels)
    if keep and count < len(counts):
        with pytest.raises(DataError, match=f"cannot keep all {len(counts)} labels"):
            sample(rows, count, seed=seed, keep_labels=True)
        return
    sampled = sample(rows, count, seed=seed, keep_labels=keep)
    assert len(sampled) == min(count, len(rows))
    assert pairs_of(sampled) <= pairs_of(rows)
    if keep:
        assert set(sampled.labels) == set(counts)
    elif count < len(rows):
        assert all(abs(Counter(sampled.labels)[label] - count * n / len(rows)) < 1 for label, n in counts.items())


@given(PAIRS, st.integers(1, 5), st.integers(0, 5))
def test_shots_are_sampled_per_label(pairs: list[tuple[Text, str]], n: int, seed: int) -> None:
    rows = rows_of(pairs)
    sampled = sample_shots(rows, n, seed=seed)
    assert Counter(sampled.labels) == {label: min(n, count) for label, count in Counter(rows.labels).items()}
    assert pairs_of(sampled) <= pairs_of(rows)


@given(PAIRS, st.integers(1, 30), st.integers(0, 5), st.randoms())
def test_the_order_of_rows_does_not_matter(pairs: list[tuple[Text, str]], count: int, seed: int, mix: object) -> None:
    shuffled = list(pairs)
    mix.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = rows_of(pairs), rows_of(shuffled)
    assert pairs_of(split_off(first, count, seed=seed)[1]) == pairs_of(split_off(second, count, seed=seed)[1])
    assert pairs_of(sample(first, count, seed=seed)) == pairs_of(sample(second, count, seed=seed))
    assert pairs_of(sample_shots(first, count, seed=seed)) == pairs_of(sample_shots(second, count, seed=seed))


def test_sampling_follows_from_the_seed() -> None:
    rows = rows_of([(f"text {i}", "ab"[i % 2]) for i in range(100)])
    samples = [sample(rows, 20, seed=seed) for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2]
    # A pinned choice: registered runs rely on the same rows being taken by later versions.
    assert sample(rows, 4, seed="0/task/train/rows").texts == ("text 17", "text 56", "text 60", "text 87")


def test_rows_keep_their_order() -> None:
    rows = rows_of([(f"{i:03}", "ab"[i % 2]) for i in range(50)])
    remaining, carved = split_off(rows, 10, seed=0)
    for part in (remaining, carved, sample(rows, 10, seed=0), sample_shots(rows, 5, seed=0)):
        assert list(part.texts) == sorted(str(text) for text in part.texts)


@given(PAIRS, PAIRS)
def test_a_fingerprint_is_shared_by_equal_rows_only(
    first: list[tuple[Text, str]], second: list[tuple[Text, str]]
) -> None:
    assert (rows_of(first).fingerprint == rows_of(second).fingerprint) == (first == second)


def test_a_fingerprint_distinguishes_a_pair_from_a_similar_text() -> None:
    alike = [
        LabelledTexts((("a", "b"),), ("x",)),
        LabelledTexts(('["a","b"]',), ("x",)),
        LabelledTexts(("a", "b"), ("x", "x")),
    ]
    assert len({rows.fingerprint for rows in alike}) == 3
    assert LabelledTexts(("a", "b"), ("x", "y")).fingerprint != LabelledTexts(("b", "a"), ("y", "x")).fingerprint


def test_rows_need_a_target_for_every_text_or_none() -> None:
    assert LabelledTexts(("a", "b"), ()).labels == ()
    with pytest.raises(DataError, match="2 texts, 1 targets"):
        LabelledTexts(("a", "b"), ("x",))
