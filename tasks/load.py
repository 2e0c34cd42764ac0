"""A task's rows, from spec to `TaskData`: splits are read, checked, carved where absent, cut to size."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.rows import Rows, TaskData, Text, carve, sample, shots
from tasks.source import Origin, present, read_split
from tasks.spec import SPLITS, Split, Stream, TaskSpec

LOADABLE = ("classification",)
CARVED: dict[Split, float] = {"test": 0.2, "validation": 0.1}  # shares of train, test first, validation of the rest


def load_stream(stream: Stream) -> tuple[TaskData, ...]:
    """The rows of every task of a stream, in order, each spec filled in from the stream.

    Raises: DataError, one message with what is wrong in all of the tasks.
    """
    loaded: list[TaskData] = []
    problems: list[str] = []
    for spec in stream.resolved():
        try:
            loaded.append(load_task(spec, folder=stream.folder, seed=stream.seed))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return tuple(loaded)


def load_task(spec: TaskSpec, *, folder: Path, seed: int) -> TaskData:
    """The rows of one task; relative data files start from `folder`.

    A validation or test split that the source lacks is carved from train; then `shots` and `rows` are taken. Both
    depend on `seed`, the task's name and the split, and on nothing else.

    Raises: DataError, naming task and split: a kind that cannot be loaded, files, columns, texts or labels that are
    not as they should be, labels in validation or test that train lacks, fewer than two labels.
    """
    if spec.kind not in LOADABLE:
        raise DataError(f"task {spec.name!r}: kind {spec.kind} cannot be loaded yet; supported: {', '.join(LOADABLE)}")
    origin = Origin(spec.name, spec.source, folder)
    splits = {split: _rows(spec, origin, split) for split in present(origin)}
    splits, carved = _completed(splits, origin, seed)
    labels = _checked_labels(splits, origin)
    splits, limited = _limited(splits, spec, origin, seed)
    return TaskData(spec, labels, splits["train"], splits["validation"], splits["test"], (*carved, *limited))


def _rows(spec: TaskSpec, origin: Origin, split: Split) -> Rows:
    table = read_split(origin, split)
    names = (spec.text,) if isinstance(spec.text, str) else spec.text
    texts = [_texts(_column(table, name, origin, split), name, origin, split) for name in names]
    assert spec.label is not None  # a classification spec without it is no spec
    labels = _labels(_column(table, spec.label, origin, split), table.features[spec.label], spec.label, origin, split)
    paired: tuple[Text, ...] = tuple(zip(*texts, strict=True)) if len(texts) == 2 else tuple(texts[0])
    return Rows(paired, labels)


def _column(table: Any, name: str, origin: Origin, split: Split) -> list[Any]:
    there = table.column_names
    if name not in there:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{origin.at(split)}: no column {name!r}{hint} (the columns are {', '.join(there)})")
    return list(table.select_columns([name])[:][name])


def _texts(values: list[Any], name: str, origin: Origin, split: Split) -> list[str]:
    for number, value in enumerate(values, 1):
        if not isinstance(value, str):
            raise DataError(
                f"{origin.at(split)}: column {name!r}, row {number}: {value!r:.80} is not a text; "
                "quote it or drop the row"
            )
    return values


def _labels(values: list[Any], feature: Any, name: str, origin: Origin, split: Split) -> tuple[str, ...]:
    names = getattr(feature, "names", None)  # a class label of `datasets` has them
    labels: list[str] = []
    for number, value in enumerate(values, 1):
        label = _label(value, names)
        if label is None:
            raise DataError(
                f"{origin.at(split)}: column {name!r}, row {number}: {value!r:.80} is not a label; "
                "allowed are texts, whole numbers and true or false; label the row or drop it"
            )
        labels.append(label)
    return tuple(labels)


def _label(value: Any, names: list[str] | None) -> str | None:
    """A label as text, or None for what is not one."""
    if names is not None:  # a class number; the hub marks unlabelled rows with -1
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float):  # whole numbers become floats where a reader met a gap in the column
        return str(int(value)) if value.is_integer() else None
    return str(value) if isinstance(value, int) else None


def _completed(splits: dict[Split, Rows], origin: Origin, seed: int) -> tuple[dict[Split, Rows], list[str]]:
    """Carve the absent splits from train."""
    done, notes = dict(splits), []
    for split, share in CARVED.items():
        if split in splits:
            continue
        before = len(done["train"])
        done["train"], done[split] = carve(
            done["train"], max(1, round(share * before)), seed=f"{seed}/{origin.task}/{split}"
        )
        if not done[split]:
            raise DataError(
                f"{origin.at(split)}: there is no such split, and the {before} rows of train cannot spare any "
                f"without losing a label; give a {split} split or more rows"
            )
        notes.append(
            f"{split}: not given; {len(done[split])} of the {before} train rows were held out for it (seed {seed})"
        )
    return done, notes


def _checked_labels(splits: dict[Split, Rows], origin: Origin) -> tuple[str, ...]:
    known = set(splits["train"].labels)
    if len(known) < 2:
        raise DataError(f"{origin.at('train')}: at least two labels are needed; got only {', '.join(map(repr, known))}")
    for split in SPLITS:
        if unseen := sorted(set(splits[split].labels) - known):
            listed = ", ".join(map(repr, unseen[:20])) + (f" and {len(unseen) - 20} more" if len(unseen) > 20 else "")
            raise DataError(
                f"{origin.at(split)}: labels that train does not have: {listed}; add such rows to train or drop these"
            )
    return tuple(sorted(known))


def _limited(
    splits: dict[Split, Rows], spec: TaskSpec, origin: Origin, seed: int
) -> tuple[dict[Split, Rows], list[str]]:
    """Take `shots` of train, then at most `rows` of each split."""
    done, notes = dict(splits), []
    if spec.shots is not None:
        done["train"] = shots(done["train"], spec.shots, seed=f"{seed}/{spec.name}/shots")
        notes.append(
            f"train: {spec.shots} shots per label, {len(done['train'])} of {len(splits['train'])} rows (seed {seed})"
        )
    for split, count in spec.rows.items():
        before = len(done[split])
        try:
            done[split] = sample(
                done[split], count, seed=f"{seed}/{spec.name}/{split}/rows", keep_labels=split == "train"
            )
        except DataError as error:
            raise DataError(f"{origin.at(split)}: {error}") from error
        if len(done[split]) < before:
            notes.append(f"{split}: {len(done[split])} of {before} rows were taken (seed {seed})")
    return done, notes
