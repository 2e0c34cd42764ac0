"""Find signs that a task's rows are not what their owner believes.

A warning names splits, row numbers (from 1, as read) and labels, never a text, since it is stored with the delta.
Texts are compared in lower case, in Unicode form NFKC, with spaces collapsed.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tasks.conversation import Conversation, Text, text_parts
from tasks.errors import DataError
from tasks.rows import GenerationTarget, LabelledTexts, Target, TaskData
from tasks.source_spec import SPLITS, Split

FEW_VALIDATION_ROWS = 50
IMBALANCED_SHARE = 0.9  # of the rows, in the most frequent label
IMBALANCED_RATIO = 20  # rows of the most frequent label over rows of the rarest
REPEATED_SHARE = 0.1  # of the train rows, which repeat an earlier one
MAX_NAMED = 5  # labels or rows that a warning names
QUOTES = "\"'`´‘’‚‛“”„‟«»‹›"
PLACEHOLDERS = {"nan", "none", "null", "nil", "n/a", "na", "#n/a", "undefined"}  # of missing values
TWO_LETTERS = re.compile(r"[^\W_].*?[^\W_]", re.DOTALL)
HELD_OUT_SPLITS: tuple[Split, ...] = ("validation", "test")


def rows_as_read_warnings(splits: Mapping[Split, LabelledTexts], labels: Sequence[str]) -> Iterator[str]:
    """Yield a warning for everything suspicious in the rows as they were read.

    Args:
        splits: The splits that the source has.
        labels: The labels of train; empty for kinds without labels.
    """
    yield from _similar_labels(labels)
    yield from _common_texts(splits)
    yield from _contradictions(splits)
    yield from _class_sizes(splits["train"].labels)
    yield from _repeated_rows(splits["train"])
    for split, rows in splits.items():
        yield from _nearly_empty_texts(split, rows.texts)
        yield from _empty_targets(split, rows)


def held_out_warnings(splits: Mapping[Split, LabelledTexts], labels: Sequence[str]) -> Iterator[str]:
    """Yield a warning for everything that makes choices and scores unreliable, in the rows that are used.

    Args:
        splits: All three splits, carved and limited.
        labels: The labels of train; empty for kinds without labels.
    """
    for split in HELD_OUT_SPLITS:
        present = set(splits[split].labels)
        if absent := [label for label in labels if label not in present]:
            yield (
                f"{split}: no row has label {_enumerate(map(repr, absent))} ({len(absent)} of {len(labels)} labels): a "
                "mean over labels, as in macro_f1, counts them only where they are answered"
            )
    if (count := len(splits["validation"])) < FEW_VALIDATION_ROWS:
        yield (
            f"validation: {count} rows, of at least {FEW_VALIDATION_ROWS} that choosing a start, a method and an epoch "
            "reliably takes; give more"
        )


def require_no_warnings(data: TaskData) -> None:
    """Raise an error where a strict task has warnings.

    Raises:
        DataError: Names all of them.
    """
    if data.spec.strict and data.warnings:
        listed = "".join(f"\n  {warning}" for warning in data.warnings)
        raise DataError(
            f"task {data.spec.name!r} is strict, and its rows are suspicious; mend them or drop strict:{listed}"
        )


def share_of_rows(count: int, total: int) -> str:
    """Format a count of rows.

    >>> share_of_rows(1, 12)
    '1 of 12 rows (8.33 %)'
    """
    return f"{count:,} of {total:,} rows ({100 * count / total:.3g} %)"


def label_key(label: str) -> str | float:
    """Return what labels that look alike have in common.

    >>> label_key(" “Not  Spam” ") == label_key("not_spam"), label_key("1.0") == label_key("1"), label_key("C++")
    (True, True, 'c++')
    """
    visible = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
    words = re.sub(r"[\s_-]+", " ", visible.strip().strip(QUOTES)).strip()
    key = (words or visible.strip() or label).casefold()
    try:
        number = float(key)
    except ValueError:
        return key
    return number if math.isfinite(number) else key


def is_nearly_empty(text: str) -> bool:
    """Tell whether a text has at most one character of content, or is the placeholder of a missing value.

    >>> [is_nearly_empty(text) for text in ("", " - ", "x", "NaN", "no", "好", "👍")]
    [True, True, True, True, False, False, False]
    """
    if text.strip().casefold() in PLACEHOLDERS:
        return True
    if TWO_LETTERS.search(text):
        return False
    content = [c for c in text if c.isalnum() or unicodedata.category(c) == "So"]
    return not content or (len(content) == 1 and content[0].isascii())


def _similar_labels(labels: Sequence[str]) -> Iterator[str]:
    groups: dict[str | float, list[str]] = defaultdict(list)
    for label in labels:
        groups[label_key(label)].append(label)
    for similar in groups.values():
        if len(similar) > 1:
            composed = {unicodedata.normalize("NFC", label) for label in similar}
            spelt = map(repr if len(composed) == len(similar) else ascii, similar)  # or both would be printed alike
            yield f"labels {_enumerate(spelt)} look alike; write them in one way if they are one label"


def _common_texts(splits: Mapping[Split, LabelledTexts]) -> Iterator[str]:
    """Yield where texts of a held-out split occur in train or in the other held-out split."""
    keys = {split: [_text_key(text) for text in rows.texts] for split, rows in splits.items()}
    for split, other_split in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if split in keys and other_split in keys:
            other_keys = set(keys[other_split])
            if rows := [row for row, key in enumerate(keys[split], start=1) if key in other_keys]:
                yield (
                    f"{split}: {share_of_rows(len(rows), len(keys[split]))} have a text of {other_split} "
                    f"({_row_list(rows)}), where scores count memory; keep each text in one split"
                )


def _contradictions(splits: Mapping[Split, LabelledTexts]) -> Iterator[str]:
    """Yield how many texts have several labels or numbers; several texts to generate are no contradiction."""
    places: dict[tuple[str, ...], dict[Target, str]] = defaultdict(dict)  # of each target of a text, the first
    for split in SPLITS:
        rows = splits.get(split, LabelledTexts((), ()))
        for row, (text, target) in enumerate(zip(rows.texts, rows.targets, strict=True), start=1):
            if isinstance(target, str | float):
                places[_text_key(text)].setdefault(target, f"{split} {row}")
    if several := [list(by_target.values()) for by_target in places.values() if len(by_target) > 1]:
        examples = _enumerate(" and ".join(rows[:2]) for rows in several)
        yield (
            f"{len(several):,} of {len(places):,} different texts have several targets (rows {examples}); decide on "
            "one for each"
        )


def _class_sizes(labels: Sequence[str]) -> Iterator[str]:
    if not labels:
        return
    counts = Counter(labels).most_common()
    if single := sorted(label for label, count in counts if count == 1):
        yield (
            f"train: label {_enumerate(map(repr, single))} ({len(single)} of {len(counts)} labels) has one row; give "
            "more, or drop the label"
        )
    (frequent, max_rows), (rare, min_rows) = counts[0], counts[-1]
    if max_rows >= IMBALANCED_SHARE * len(labels) or max_rows >= IMBALANCED_RATIO * min_rows:
        yield (
            f"train: {share_of_rows(max_rows, len(labels))} have label {frequent!r}, {min_rows} have {rare!r}: "
            "accuracy hardly counts rare labels; score by macro_f1, or give more rows of them"
        )


def _repeated_rows(train: LabelledTexts) -> Iterator[str]:
    repeated = len(train) - len(set(zip(map(_text_key, train.texts), train.targets, strict=True)))
    if repeated >= REPEATED_SHARE * len(train):
        yield f"train: {share_of_rows(repeated, len(train))} repeat another row; drop or replace the copies"


def _nearly_empty_texts(split: Split, texts: Sequence[Text]) -> Iterator[str]:
    rows = [row for row, text in enumerate(texts, start=1) if any(map(is_nearly_empty, text_parts(text)))]
    if rows:
        yield (
            f"{split}: {share_of_rows(len(rows), len(texts))} have a text that is nearly empty, or the placeholder of "
            f"a missing value ({_row_list(rows)}); mend or drop them"
        )


def _empty_targets(split: Split, rows: LabelledTexts) -> Iterator[str]:
    """Yield where a text to generate, of any learned turn of a conversation, is empty or only white space."""
    row_targets = map(_texts_to_generate, rows.texts, rows.targets)
    empty = [row for row, texts in enumerate(row_targets, start=1) if not all(text.strip() for text in texts)]
    if empty:
        yield (
            f"{split}: {share_of_rows(len(empty), len(rows))} have an empty target ({_row_list(empty)}), so that the "
            "right answer is to write nothing; mend or drop them"
        )


def _texts_to_generate(text: Text, target: Target) -> list[str]:
    """Return the texts that a row of a generation task is learned to generate; none of other kinds' rows."""
    if not isinstance(target, GenerationTarget):
        return []
    messages = text.messages if isinstance(text, Conversation) else ()
    return [*(message.content for message in messages if message.learned), target.text]


def _text_key(text: Text) -> tuple[str, ...]:
    """Return what equal texts have in common."""
    composed = (part if part.isascii() else unicodedata.normalize("NFKC", part) for part in text_parts(text))
    return tuple(" ".join(part.casefold().split()) for part in composed)


def _row_list(rows: Sequence[int]) -> str:
    return f"{'row' if len(rows) == 1 else 'rows'} {_enumerate(map(str, rows))}"


def _enumerate(names: Iterable[str]) -> str:
    """Join the first few names by commas."""
    listed = list(names)
    return ", ".join(listed[:MAX_NAMED]) + (", …" if len(listed) > MAX_NAMED else "")
