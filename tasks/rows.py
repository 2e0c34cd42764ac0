"""Rows of texts and what is right for them, and the seeded ways to take some of them.

Which rows are taken depends on what they say, never on where they stand: every row has a rank, the SHA-256 of seed and
row, and the lowest ranks go first. The same seed picks the same rows on every machine and in every order of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import floor
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError
from tasks.spec import TaskSpec

Text = str | tuple[str, str]


class AnswerSpan(NamedTuple):
    """A right answer of a span task; start: where it stands in the passage, in characters, None where it does not."""

    text: str
    start: int | None


class GenerationTarget(NamedTuple):
    """What a generation task should write: the text that is learned, and all that would be right."""

    text: str
    references: tuple[str, ...]


Target = str | float | tuple[AnswerSpan, ...] | GenerationTarget  # of classification, regression, span and generation


@dataclass(frozen=True)
class LabelledTexts:
    """Texts (or pairs of texts) and what is right for each, in order; without targets where that is not known."""

    texts: tuple[Text, ...]
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if self.targets and len(self.texts) != len(self.targets):
            raise DataError(f"rows need one target per text; got {len(self.texts)} texts, {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of every row; nothing where the targets are no labels."""
        return tuple(target for target in self.targets if isinstance(target, str))

    @property
    def strata(self) -> tuple[str, ...]:
        """The groups whose proportions are kept when rows are taken: those of the labels, or a single one."""
        return self.labels or ("",) * len(self)

    def select(self, indices: Iterable[int]) -> LabelledTexts:
        """The rows at `indices`, in the order given."""
        chosen = tuple(indices)
        return LabelledTexts(tuple(self.texts[i] for i in chosen), tuple(self.targets[i] for i in chosen))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows in order; two `Rows` share it exactly if they are equal."""
        return _digest(list(zip(self.texts, self.targets, strict=True)))


@dataclass(frozen=True)
class TaskData:
    """The rows of one task, ready to learn.

    `labels` are the labels of train, sorted; none for kinds without labels. `notes` say in words what was carved or
    sampled, for the user to see. `folder` is what relative paths of the spec started from, `seed` what was drawn by.
    """

    spec: TaskSpec
    labels: tuple[str, ...]
    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    notes: tuple[str, ...] = ()
    folder: Path = Path()
    seed: int = 0


def split_off(rows: LabelledTexts, count: int, *, seed: int | str) -> tuple[LabelledTexts, LabelledTexts]:
    """Split `rows` into (kept, carved), at most `count` of them carved, in the proportions of the labels.

    Every label stays in kept (one with a single row is not carved), and equal texts stay on one side, so that nothing
    held out was seen in training. Fewer than `count` are carved where these two rules leave no choice.

    >>> rows = Rows(("a", "b", "c", "d"), ("x", "x", "y", "y"))
    >>> kept, carved = carve(rows, 2, seed=0)
    >>> sorted(carved.labels), sorted(kept.labels)
    (['x', 'y'], ['x', 'y'])
    """
    groups: dict[Text, list[int]] = defaultdict(list)
    for index, text in enumerate(rows.texts):
        groups[text].append(index)
    strata = rows.strata
    left = Counter(strata)
    room = Counter(stratified_quotas(left, min(count, len(rows)), seed=seed))
    carved: set[int] = set()
    for text in sorted(groups, key=lambda text: _digest([seed, text])):
        took = Counter(strata[index] for index in groups[text])
        if all(took[label] <= room[label] and took[label] < left[label] for label in took):
            room -= took
            left -= took
            carved.update(groups[text])
    return rows.select(i for i in range(len(rows)) if i not in carved), rows.select(sorted(carved))


def sample(rows: LabelledTexts, count: int, *, seed: int | str, keep_labels: bool = False) -> LabelledTexts:
    """At most `count` rows, in their order, in the proportions of the labels; with `keep_labels` none is lost.

    Raises: DataError where `keep_labels` asks for more labels than `count`.
    """
    if len(rows) <= count:
        return rows
    counts = Counter(rows.strata)
    if keep_labels and count < len(counts):
        raise DataError(f"{count} rows cannot keep all {len(counts)} labels; allow at least {len(counts)} rows")
    return _first(rows, stratified_quotas(counts, count, seed=seed, at_least=int(keep_labels)), seed)


def sample_shots(rows: LabelledTexts, n: int, *, seed: int | str) -> LabelledTexts:
    """`n` rows of every label, in their order; all rows of a label that has fewer. Without labels, `n` rows."""
    return _first(rows, dict.fromkeys(rows.strata, n), seed)


def stratified_quotas(counts: Mapping[str, int], total: int, *, seed: int | str, at_least: int = 0) -> dict[str, int]:
    """Share `total` among labels by largest remainder, `at_least` for each; the seed orders equal remainders."""
    exact = {label: total * count / sum(counts.values()) for label, count in counts.items()}
    share = {label: max(at_least, floor(value)) for label, value in exact.items()}
    by_need = sorted(exact, key=lambda label: (share[label] - exact[label], _digest([seed, label])))
    for label in by_need[: max(0, total - sum(share.values()))]:
        share[label] += 1
    while sum(share.values()) > total:  # small labels were lifted: the largest give
        share[max(share, key=lambda label: (share[label], label))] -= 1
    return share


def _first(rows: LabelledTexts, share: Mapping[str, int], seed: int | str) -> LabelledTexts:
    """Of every label the rows of lowest rank, as many as its share."""
    ranked: dict[str, list[tuple[str, int]]] = defaultdict(list)
    copies: Counter[tuple[Text, Target]] = Counter()
    for index, (row, stratum) in enumerate(zip(zip(rows.texts, rows.targets, strict=True), rows.strata, strict=True)):
        copies[row] += 1  # equal rows get ranks of their own, or they would be taken together
        ranked[stratum].append((_digest([seed, row, copies[row]]), index))
    return rows.select(sorted(i for label, found in ranked.items() for _, i in sorted(found)[: share[label]]))


def _digest(value: object) -> str:
    """JSON with escapes tells any two values apart, broken surrogates included."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode("ascii")).hexdigest()
