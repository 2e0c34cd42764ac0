"""Loading a task's rows, from spec to `TaskData`: read, check, carve absent splits, limit sizes."""

from __future__ import annotations

from pathlib import Path

from tasks.conversation import Text
from tasks.data_quality import held_out_warnings, require_no_warnings, rows_as_read_warnings
from tasks.errors import DataError
from tasks.generation_rows import read_generation
from tasks.kind_schemas import KIND_SCHEMAS
from tasks.rows import LabelledTexts, TaskData, expand_turns, sample, sample_shots, split_off
from tasks.source import available_splits, read_split
from tasks.source_location import SourceLocation
from tasks.source_spec import Split
from tasks.spec import Stream, TaskSpec
from tasks.targets import read_targets, train_labels

# Fractions of train: first the test split, then the validation split of the remaining rows.
CARVED_FRACTIONS: dict[Split, float] = {"test": 0.2, "validation": 0.1}


def load_stream(stream: Stream) -> tuple[TaskData, ...]:
    """Load the rows of every task of a stream, in order, each spec completed from the stream's defaults.

    Raises:
        DataError: One message with the problems of all tasks.
    """
    loaded: list[TaskData] = []
    messages: list[str] = []
    for spec in stream.resolved():
        try:
            loaded.append(load_task(spec, folder=stream.folder, seed=stream.seed))
        except DataError as error:
            messages.append(str(error))
    if messages:
        raise DataError("\n".join(messages))
    return tuple(loaded)


def load_task(spec: TaskSpec, *, folder: Path, seed: int) -> TaskData:
    """Load the rows of one task.

    A validation or test split that the source lacks is carved from train; then `shots` and `rows` are applied. Both
    depend on `seed`, the task's name and the split, and on nothing else.

    Args:
        spec: The task.
        folder: Base of relative data files.
        seed: For carving and sampling.

    Raises:
        DataError: Names task and split: files, columns, texts or targets are invalid, validation or test has labels
            that train lacks, there are fewer than two labels or numbers, the template lacks a word for a label, or
            the task is strict and something about its rows is suspicious.
    """
    origin = SourceLocation(spec.name, spec.source, folder)
    as_read = {split: _read_rows(spec, origin, split) for split in available_splits(origin)}
    splits, carve_notes = _carve_absent_splits(as_read, origin, seed)
    labels = train_labels(spec, splits, origin)
    splits, limit_notes = _limit_splits(splits, spec, origin, seed)
    splits, turn_notes = _expand_turns(splits)
    warnings = (*rows_as_read_warnings(as_read, labels), *held_out_warnings(splits, labels))
    notes = (*carve_notes, *limit_notes, *turn_notes)
    data = TaskData(spec, labels, splits["train"], splits["validation"], splits["test"], notes, warnings, folder, seed)
    require_no_warnings(data)
    return data


def load_validation(spec: TaskSpec, *, folder: Path, seed: int) -> LabelledTexts:
    """Load a task's validation rows, equal to `load_task(...).validation`, without reading its test split.

    Args:
        spec: The task.
        folder: Base of relative data files.
        seed: For carving and sampling.

    Raises:
        DataError: As in `load_task`, except for problems in rows that are not read.
    """
    origin = SourceLocation(spec.name, spec.source, folder)
    available = available_splits(origin)
    if "validation" in available:
        rows = _read_rows(spec, origin, "validation")
    else:
        other_splits = {split: LabelledTexts((), ()) for split in available}
        rows = _carve_absent_splits(other_splits | {"train": _read_rows(spec, origin, "train")}, origin, seed)[0][
            "validation"
        ]
    return expand_turns(_limit_rows(rows, spec, "validation", origin, seed))


def _read_rows(spec: TaskSpec, origin: SourceLocation, split: Split) -> LabelledTexts:
    table = read_split(origin, split)
    if KIND_SCHEMAS[spec.kind].targets == "texts":
        return read_generation(spec, table)
    column_names = (spec.text,) if isinstance(spec.text, str) else spec.text
    columns = [table.column(name).texts() for name in column_names]
    texts: tuple[Text, ...] = tuple(zip(*columns, strict=True)) if len(columns) == 2 else columns[0]
    return LabelledTexts(texts, read_targets(spec, table, texts))


def _carve_absent_splits(
    splits: dict[Split, LabelledTexts], origin: SourceLocation, seed: int
) -> tuple[dict[Split, LabelledTexts], list[str]]:
    """Return all three splits, the absent ones carved from train, and notes for the user."""
    completed, notes = dict(splits), []
    for split, share in CARVED_FRACTIONS.items():
        if split in splits:
            continue
        train_rows = len(completed["train"])
        completed["train"], completed[split] = split_off(
            completed["train"], max(1, round(share * train_rows)), seed=f"{seed}/{origin.task}/{split}"
        )
        if not completed[split]:
            raise DataError(
                f"{origin.split_location(split)}: there is no such split, and the {train_rows} rows of train cannot "
                f"spare any{_no_spare_reason(completed['train'])}; give a {split} split or more rows"
            )
        notes.append(
            f"{split}: not given; {len(completed[split])} of the {train_rows} train rows were held out for it "
            f"(seed {seed})"
        )
    return completed, notes


def _no_spare_reason(train: LabelledTexts) -> str:
    different = len(set(train.texts))
    copies = f" (they hold {different} different texts, and equal texts stay together)" * (different < len(train))
    return f" without losing {'a label' if train.labels else 'all of them'}{copies}"


def _limit_splits(
    splits: dict[Split, LabelledTexts], spec: TaskSpec, origin: SourceLocation, seed: int
) -> tuple[dict[Split, LabelledTexts], list[str]]:
    """Apply `shots` to train, then `rows` to each split; return the splits and notes for the user."""
    limited, notes = dict(splits), []
    if spec.shots is not None:
        per_label = " per label" if limited["train"].labels else ""
        limited["train"] = sample_shots(limited["train"], spec.shots, seed=f"{seed}/{spec.name}/shots")
        notes.append(
            f"train: {spec.shots} shots{per_label}, {len(limited['train'])} of {len(splits['train'])} rows "
            f"(seed {seed})"
        )
    for split in spec.rows:
        full_size = len(limited[split])
        limited[split] = _limit_rows(limited[split], spec, split, origin, seed)
        if len(limited[split]) < full_size:
            notes.append(f"{split}: {len(limited[split])} of {full_size} rows were taken (seed {seed})")
    return limited, notes


def _expand_turns(splits: dict[Split, LabelledTexts]) -> tuple[dict[Split, LabelledTexts], list[str]]:
    """Return the splits with a row for each learned turn of a conversation, and notes for the user."""
    expanded = {split: expand_turns(rows) for split, rows in splits.items()}
    notes = [
        f"{split}: {len(splits[split])} conversations have {len(rows)} assistant turns that are learned, a row for each"
        for split, rows in expanded.items()
        if len(rows) > len(splits[split])
    ]
    return expanded, notes


def _limit_rows(rows: LabelledTexts, spec: TaskSpec, split: Split, origin: SourceLocation, seed: int) -> LabelledTexts:
    """Return at most `spec.rows[split]` rows."""
    count = spec.rows.get(split, len(rows))
    try:
        return sample(rows, count, seed=f"{seed}/{spec.name}/{split}/rows", keep_labels=split == "train")
    except DataError as error:
        raise DataError(f"{origin.split_location(split)}: {error}") from error
