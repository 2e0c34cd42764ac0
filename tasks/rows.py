"""Texts with their targets, and seeded ways to split and sample them.

A selection depends on the rows' content, never on their order: every row has a rank, the SHA-256 of seed and row, and
the lowest ranks are taken first. The same seed picks the same rows on every machine and in every order of the file.
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

from tasks.conversation import Conversation, Text, text_of
from tasks.errors import DataError
from tasks.spec import TaskSpec


class AnswerSpan(NamedTuple):
    """A right answer of a span task.

    Attributes:
        text: The answer.
        start: Character offset in the passage; None if the answer does not occur in it.
    """

    text: str
    start: int | None


class GenerationTarget(NamedTuple):
    """The target of a generation task.

    Attributes:
        text: The text to train on.
        references: All accepted texts, for scoring.
    """

    text: str
    references: tuple[str, ...]


Target = str | float | tuple[AnswerSpan, ...] | GenerationTarget  # of classification, regression, span and generation


@dataclass(frozen=True)
class LabelledTexts:
    """Texts (or pairs of texts, or conversations) and their targets, in order.

    Attributes:
        texts: One text, pair or conversation per row.
        targets: One target per row; empty if the targets are unknown.
    """

    texts: tuple[Text, ...]
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if self.targets and len(self.texts) != len(self.targets):
            raise DataError(f"rows need one target per text; got {len(self.texts)} texts, {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of every row; empty if the targets are not labels."""
        return tuple(target for target in self.targets if isinstance(target, str))

    @property
    def strata(self) -> tuple[str, ...]:
        """The group of every row for stratified sampling: its label, or one common group without labels."""
        return self.labels or ("",) * len(self)

    def select(self, indices: Iterable[int]) -> LabelledTexts:
        """Return the rows at `indices`, in the order of `indices`."""
        selected = tuple(indices)
        return LabelledTexts(tuple(self.texts[i] for i in selected), tuple(self.targets[i] for i in selected))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the rows in order; two `LabelledTexts` share it exactly if they are equal."""
        return _digest(list(zip(self.texts, self.targets, strict=True)))


@dataclass(frozen=True)
class TaskData:
    """The rows of one task, ready to learn.

    Attributes:
        spec: The task, completed from its stream.
        labels: The labels of train, sorted; empty for kinds without labels.
        train: Rows to train on.
        validation: Held-out rows, for choices such as warm starts.
        test: Rows to score on.
        notes: Sentences for the user about carved and sampled splits.
        warnings: Sentences about what is suspicious in the rows; they name rows and labels, never a text.
        folder: Base of the spec's relative paths.
        seed: Seed of carving and sampling.
    """

    spec: TaskSpec
    labels: tuple[str, ...]
    train: LabelledTexts
    validation: LabelledTexts
    test: LabelledTexts
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    folder: Path = Path()
    seed: int = 0


def expand_turns(rows: LabelledTexts) -> LabelledTexts:
    """Return one row for each learned turn of conversations, in order: the messages before it are its text.

    It is called when the splits are made, so that the turns of one conversation are in one split.
    """
    expanded: list[tuple[Text, Target]] = []
    for text, target in zip(rows.texts, rows.targets, strict=True):
        if isinstance(text, Conversation):
            messages = tuple(message._replace(learned=False) for message in text.messages)
            for turn, message in enumerate(text.messages):
                if message.learned:
                    answer = GenerationTarget(message.content, (message.content,))
                    expanded.append((text_of(messages[:turn]), answer))
            text = text_of(messages)
        expanded.append((text, target))
    return LabelledTexts(tuple(text for text, _ in expanded), tuple(target for _, target in expanded))


def split_off(rows: LabelledTexts, count: int, *, seed: int | str) -> tuple[LabelledTexts, LabelledTexts]:
    """Split `rows` into (remaining, carved): about `count` rows, in the proportions of the labels.

    Every label stays in the remaining rows (a label with a single text is not carved), and equal texts stay on one
    side, so that no held-out text occurs in training. Where these two rules leave no choice, fewer rows than `count`
    are carved; where every text of a label has more copies than its part of `count`, the text of fewest copies is.

    >>> rows = LabelledTexts(("a", "b", "c", "d"), ("x", "x", "y", "y"))
    >>> remaining, carved = split_off(rows, 2, seed=0)
    >>> sorted(carved.labels), sorted(remaining.labels)
    (['x', 'y'], ['x', 'y'])
    """
    groups: dict[Text, list[int]] = defaultdict(list)
    for index, text in enumerate(rows.texts):
        groups[text].append(index)
    strata = rows.strata
    remaining, carved = Counter(strata), set[int]()
    quota = Counter(stratified_quotas(remaining, min(count, len(rows)), seed=seed))
    wanted = {label for label, size in quota.items() if size}
    ranked = sorted(groups, key=lambda text: _digest([seed, text]))

    def carve(text: Text, *, within: Mapping[str, int] | None = None) -> bool:
        """Carve the rows of `text` if every label stays, and within quotas if they are given."""
        sizes = Counter(strata[index] for index in groups[text])
        if any(
            size >= remaining[label] or (within is not None and size > within[label]) for label, size in sizes.items()
        ):
            return False
        remaining.subtract(sizes)
        quota.subtract(sizes)
        wanted.difference_update(sizes)
        carved.update(groups[text])
        return True

    for text in ranked:
        carve(text, within=quota)
    fewest_copies = sorted(ranked, key=lambda text: len(groups[text]))
    for text in fewest_copies:  # a label whose texts all have more copies than its quota
        if not carved.intersection(groups[text]) and any(strata[index] in wanted for index in groups[text]):
            carve(text)
    if not carved and count > 0:  # the quotas fell to labels of a single text
        next(filter(carve, fewest_copies), None)
    return rows.select(i for i in range(len(rows)) if i not in carved), rows.select(sorted(carved))


def sample(rows: LabelledTexts, count: int, *, seed: int | str, keep_labels: bool = False) -> LabelledTexts:
    """Sample at most `count` rows, in their order, in the proportions of the labels.

    Args:
        rows: Rows to sample from.
        count: Maximum number of rows.
        seed: Determines the selection, with the rows' content.
        keep_labels: Keep at least one row of every label.

    Raises:
        DataError: `keep_labels` is set and there are more labels than `count`.
    """
    if len(rows) <= count:
        return rows
    counts = Counter(rows.strata)
    if keep_labels and count < len(counts):
        raise DataError(f"{count} rows cannot keep all {len(counts)} labels; allow at least {len(counts)} rows")
    return _lowest_ranked(rows, stratified_quotas(counts, count, seed=seed, at_least=int(keep_labels)), seed)


def sample_shots(rows: LabelledTexts, shots: int, *, seed: int | str) -> LabelledTexts:
    """Sample `shots` rows of every label, in their order; all rows of a label that has fewer.

    Without labels, `shots` rows in total.
    """
    return _lowest_ranked(rows, dict.fromkeys(rows.strata, shots), seed)


def stratified_quotas(counts: Mapping[str, int], total: int, *, seed: int | str, at_least: int = 0) -> dict[str, int]:
    """Divide `total` among labels by the largest remainder method.

    Args:
        counts: Rows per label.
        total: Sum of the quotas.
        seed: Orders equal remainders.
        at_least: Minimum quota of each label.

    Returns:
        The quota of each label.
    """
    exact_shares = {label: total * count / sum(counts.values()) for label, count in counts.items()}
    quotas = {label: max(at_least, floor(value)) for label, value in exact_shares.items()}
    by_remainder = sorted(exact_shares, key=lambda label: (quotas[label] - exact_shares[label], _digest([seed, label])))
    for label in by_remainder[: max(0, total - sum(quotas.values()))]:
        quotas[label] += 1
    while sum(quotas.values()) > total:  # `at_least` raised small labels: take from the largest
        quotas[max(quotas, key=lambda label: (quotas[label], label))] -= 1
    return quotas


def _lowest_ranked(rows: LabelledTexts, quotas: Mapping[str, int], seed: int | str) -> LabelledTexts:
    """Return, of every label, as many rows as its quota, the lowest ranks first; in their order."""
    ranked: dict[str, list[tuple[str, int]]] = defaultdict(list)
    copies: Counter[tuple[Text, Target]] = Counter()
    for index, (row, stratum) in enumerate(zip(zip(rows.texts, rows.targets, strict=True), rows.strata, strict=True)):
        copies[row] += 1  # equal rows get different ranks, or they would be taken together
        ranked[stratum].append((_digest([seed, row, copies[row]]), index))
    return rows.select(sorted(i for label, ranks in ranked.items() for _, i in sorted(ranks)[: quotas[label]]))


def _digest(value: object) -> str:
    """Return the SHA-256 of a value's JSON, whose escapes distinguish even broken surrogates."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode("ascii")).hexdigest()
