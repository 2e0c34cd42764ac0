"""A task's rows, from spec to `TaskData`: splits are read, checked, carved where absent, cut to size."""

from __future__ import annotations

from pathlib import Path

from tasks.columns import Table
from tasks.errors import DataError
from tasks.rows import LabelledTexts, TaskData, Text, sample, sample_shots, split_off
from tasks.source import SourceLocation, available_splits, read_split
from tasks.spec import Split, Stream, TaskSpec
from tasks.targets import read_targets, train_labels

CARVED_FRACTIONS: dict[Split, float] = {
    "test": 0.2,
    "validation": 0.1,
}  # shares of train, test first, validation of the rest


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

    Raises: DataError, naming task and split: files, columns, texts or targets that are not as they should be, labels
    in validation or test that train lacks, fewer than two labels or numbers, a template without a word for a label.
    """
    origin = SourceLocation(spec.name, spec.source, folder)
    splits = {split: _rows(spec, origin, split) for split in available_splits(origin)}
    splits, carved = _completed(splits, origin, seed)
    labels = train_labels(spec, splits, origin)
    splits, limited = _limited(splits, spec, origin, seed)
    notes = (*carved, *limited)
    return TaskData(spec, labels, splits["train"], splits["validation"], splits["test"], notes, folder, seed)


def load_validation(spec: TaskSpec, *, folder: Path, seed: int) -> LabelledTexts:
    """The validation rows of one task, as `load_task` gives them; those of its test split are not read.

    Raises: DataError, as `load_task` does, but for what is wrong in rows that are not read.
    """
    origin = SourceLocation(spec.name, spec.source, folder)
    there = available_splits(origin)
    if "validation" in there:
        found = _rows(spec, origin, "validation")
    else:
        unread = {split: LabelledTexts((), ()) for split in there}
        found = _completed(unread | {"train": _rows(spec, origin, "train")}, origin, seed)[0]["validation"]
    return _few(found, spec, "validation", origin, seed)


def _rows(spec: TaskSpec, origin: SourceLocation, split: Split) -> LabelledTexts:
    table = Table(read_split(origin, split), origin.split_location(split))
    names = (spec.text,) if isinstance(spec.text, str) else spec.text
    columns = [table.column(name).texts() for name in names]
    texts: tuple[Text, ...] = tuple(zip(*columns, strict=True)) if len(columns) == 2 else columns[0]
    return LabelledTexts(texts, read_targets(spec, table, texts))


def _completed(
    splits: dict[Split, LabelledTexts], origin: SourceLocation, seed: int
) -> tuple[dict[Split, LabelledTexts], list[str]]:
    """Carve the absent splits from train."""
    done, notes = dict(splits), []
    for split, share in CARVED_FRACTIONS.items():
        if split in splits:
            continue
        before = len(done["train"])
        done["train"], done[split] = split_off(
            done["train"], max(1, round(share * before)), seed=f"{seed}/{origin.task}/{split}"
        )
        if not done[split]:
            raise DataError(
                f"{origin.split_location(split)}: there is no such split, and the {before} rows of train cannot spare "
                f"any without losing a label; give a {split} split or more rows"
            )
        notes.append(
            f"{split}: not given; {len(done[split])} of the {before} train rows were held out for it (seed {seed})"
        )
    return done, notes


def _limited(
    splits: dict[Split, LabelledTexts], spec: TaskSpec, origin: SourceLocation, seed: int
) -> tuple[dict[Split, LabelledTexts], list[str]]:
    """Take `shots` of train, then at most `rows` of each split."""
    done, notes = dict(splits), []
    if spec.shots is not None:
        per_label = " per label" if done["train"].labels else ""
        done["train"] = sample_shots(done["train"], spec.shots, seed=f"{seed}/{spec.name}/shots")
        notes.append(
            f"train: {spec.shots} shots{per_label}, {len(done['train'])} of {len(splits['train'])} rows (seed {seed})"
        )
    for split in spec.rows:
        before = len(done[split])
        done[split] = _few(done[split], spec, split, origin, seed)
        if len(done[split]) < before:
            notes.append(f"{split}: {len(done[split])} of {before} rows were taken (seed {seed})")
    return done, notes


def _few(rows: LabelledTexts, spec: TaskSpec, split: Split, origin: SourceLocation, seed: int) -> LabelledTexts:
    """At most as many rows as the task takes of a split."""
    count = spec.rows.get(split, len(rows))
    try:
        return sample(rows, count, seed=f"{seed}/{spec.name}/{split}/rows", keep_labels=split == "train")
    except DataError as error:
        raise DataError(f"{origin.split_location(split)}: {error}") from error
