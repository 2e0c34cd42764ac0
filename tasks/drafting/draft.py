"""Drafts of tasks: the columns, kind and metric that files suggest, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.columns import Table
from tasks.conversation import Text, text_parts
from tasks.data_quality import IMBALANCED_RATIO, IMBALANCED_SHARE
from tasks.drafting.grouping import FileGroup, group_files, task_name
from tasks.drafting.profiles import ColumnProfile, profile_table
from tasks.errors import DataError
from tasks.kind_schemas import KIND_SCHEMAS
from tasks.load import load_task
from tasks.rows import TaskData
from tasks.source import read_split
from tasks.source_location import SourceLocation
from tasks.spec import Budget, Stream, TaskSpec

PAIR_NAMES = (
    *(("premise", "hypothesis"), ("question", "context"), ("question", "passage"), ("question", "sentence")),
    *(("question", "document"), ("question1", "question2"), ("sentence1", "sentence2"), ("text1", "text2")),
    *(("sentence_1", "sentence_2"), ("text_a", "text_b"), ("query", "passage"), ("query", "document")),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "topic", "intent", "sentiment", "emotion", "tag", "target", "gold", "y"),
    *("score", "rating", "stars", "similarity"),
)
TARGET_NAMES = (
    *("target", "summary", "highlights", "response", "output", "completion", "translation", "reply"),
    *("paraphrase", "simplification", "answer", "answers"),
)
READ_LENGTHS = (32, 64, 128, 256, 512)  # tokens
BYTES_PER_TOKEN = 3  # at least, in most texts
READ_SHARE = 0.95  # of the texts that should be read to their end

ANSWER_NAMES = ("answer", "answers")

Profiles = Mapping[str, ColumnProfile]


@dataclass(frozen=True)
class TaskDraft:
    """A task as its files suggest it.

    Attributes:
        spec: The task.
        data: Its rows, as a run would read them.
        reasons: Why each key of the task has its value, by key.
        notes: What was left out of the files, and what is not used.
    """

    spec: TaskSpec
    data: TaskData
    reasons: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class StreamDraft:
    """A stream as its files suggest it.

    Attributes:
        stream: The stream.
        tasks: The drafts of its tasks, in order.
        reasons: Why each key of the stream has its value, by key.
    """

    stream: Stream
    tasks: tuple[TaskDraft, ...]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class _Target:
    """The kind of a task and the column of its targets."""

    kind: str
    column: ColumnProfile
    reason: str


def draft_stream(
    files: Sequence[Path], *, folder: Path, text: Sequence[str] = (), label: str | None = None, backbone: str | None
) -> StreamDraft:
    """Return the stream that files suggest; every row is read as a run reads it.

    Args:
        files: Data files, and folders of them.
        folder: The folder of the stream file, which relative paths start from.
        text: The column of the text, or those of a pair, in every file; guessed if empty.
        label: The column of labels or targets in every file; guessed if None.
        backbone: The stream's backbone.

    Raises:
        InputError: A path is no data file.
        DataError: One message with the problems of all files: rows that cannot be learned, or columns that say nothing.
    """
    drafts, messages = [], []
    for group in group_files(files):
        try:
            drafts.append(_draft_task(group, folder, text, label))
        except DataError as error:
            messages.append(str(error))
    if messages:
        raise DataError("\n".join(messages))
    name, reason = _stream_name(drafts, files)
    length, length_reason = _read_length(draft.data for draft in drafts)
    stream = Stream(
        name=name,
        backbone=backbone,
        budget=Budget(max_length=length),
        tasks=tuple(draft.spec for draft in drafts),
        folder=folder,
    )
    return StreamDraft(stream, tuple(drafts), {"name": reason, "budget": length_reason})


def _draft_task(group: FileGroup, folder: Path, text: Sequence[str], label: str | None) -> TaskDraft:
    source = group.source(folder)
    origin = SourceLocation(group.name, source, folder)
    table = read_split(origin, "train")
    for name in (*text, *([label] if label else ())):
        table.column(name)  # raises an error that lists the columns
    profiles = profile_table(table)
    if not (text or label) and (chat := _guess_chat(profiles)):
        target, names, text_reason = chat
    else:
        target = _guess_target(profiles, text, label, where=group.name)
        names, text_reason = _guess_text(profiles, text, target, where=group.name)
    if len(names) > 1 and _are_spans(table, target.column, passage=names[1]):
        target = replace(target, kind="span", reason=f"{target.reason}; all of them occur in {names[1]!r}")
    key = "messages" if names == (target.column.name,) else KIND_SCHEMAS[target.kind].target_column
    needed = {*names, target.column.name}
    notes = []
    for split in [split for split in group.files if split != "train"]:
        if missing := sorted(needed - set(read_split(origin, split).column_names)):
            notes.append(f"{split} is left out: its file has no column {', '.join(map(repr, missing))}")
            source = source.model_copy(
                update={"data_files": {of: file for of, file in (source.data_files or {}).items() if of != split}}
            )
    if unused := [repr(name) for name in profiles if name not in needed]:
        notes.append(f"columns that are not used: {', '.join(unused)}")
    metric, metric_reason = _guess_metric(target)
    values = {"name": group.name, "kind": target.kind, "source": source, "metric": metric}
    columns = {"text": names[0] if len(names) == 1 else names, key: target.column.name}
    spec = TaskSpec.model_validate(values | columns)
    reasons = {"name": group.reason, "kind": target.reason, "text": text_reason, "metric": metric_reason}
    reasons[key] = target.column.describe_labels() if target.kind == "classification" else target.column.describe()
    return TaskDraft(spec, load_task(spec, folder=folder, seed=0), reasons, tuple(notes))


def _guess_chat(profiles: Profiles) -> tuple[_Target, tuple[str, ...], str] | None:
    """Return the target and the text of prompts with completions, or of one column of messages; None without them."""
    by_name = {profile.name.casefold(): profile for profile in profiles.values()}
    written = [by_name.get(name) for name in ("prompt", "completion")]
    prompt, completion = (
        column if column and column.type in ("texts", "conversations") else None for column in written
    )
    if prompt and completion:
        reason = f"column {completion.name!r} has {completion.describe()}; chosen by its name"
        return _Target("generation", completion, reason), (prompt.name,), f"{prompt.describe()}, chosen by its name"
    conversations = [profile for profile in profiles.values() if profile.type == "conversations"]
    if len(conversations) != 1:
        return None
    (column,) = conversations
    reason = f"column {column.name!r} has {column.describe()}; every turn of an assistant is learned"
    return _Target("generation", column, reason), (column.name,), column.describe()


def _guess_target(profiles: Profiles, text: Sequence[str], label: str | None, *, where: str) -> _Target:
    if label is not None:
        return _target_of(profiles[label], "given by --label")
    others = [p for p in profiles.values() if p.name not in text and (_is_named_amount(p) or not p.identifies_rows)]
    if len(answers := [profile for profile in others if profile.type == "answers"]) == 1:
        return _target_of(answers[0], "the only column of answers with their places")
    candidates = [p for p in others if p.are_labels or p.are_amounts or _is_named_amount(p)]
    if len(candidates) == 1:
        return _target_of(candidates[0], "the only column of few values that repeat, or of numbers")
    named = [profile for profile in candidates if profile.name.casefold() in LABEL_NAMES]
    exact = [profile for profile in named if profile.name.casefold() == "label"]
    if len(exact or named) == 1:
        return _target_of((exact or named)[0], "chosen by its name")
    texts = [profile for profile in others if profile.is_text]
    targets = [profile for profile in texts if profile.name.casefold() in TARGET_NAMES]
    if not candidates and len(targets) == 1 and len(texts) + len(text) > 1:
        return _target_of(targets[0], "chosen by its name")
    reason = f"{len(candidates)} columns could hold the labels" if candidates else "no column looks like labels"
    raise _no_guess(profiles, f"{reason}; give --label COLUMN", where=where)


def _is_named_amount(profile: ColumnProfile) -> bool:
    return profile.type == "whole numbers" and profile.name.casefold() in LABEL_NAMES


def _target_of(profile: ColumnProfile, choice: str) -> _Target:
    """Return the kind of task whose targets look like a column's values."""
    if profile.type == "answers":
        kind, looks = "span", "answers with their places in a passage"
    elif profile.are_labels:
        kind, looks = "classification", f"{profile.different} different values in {profile.rows} rows"
        if profile.type == "whole numbers":
            looks += " (if they are amounts: kind: regression, metric: pearson)"
    elif profile.type in ("numbers", "whole numbers"):
        kind, looks = "regression", f"{profile.different} different numbers in {profile.rows} rows"
    else:
        kind, looks = "generation", f"{profile.different} different texts in {profile.rows} rows"
    return _Target(kind, profile, f"column {profile.name!r} has {looks}; {choice}")


def _are_spans(table: Table, answers: ColumnProfile, *, passage: str) -> bool:
    """Return whether a column is called answer, and every answer occurs in its row's passage."""
    if answers.type != "texts" or answers.name.casefold() not in ANSWER_NAMES:
        return False
    columns = (table.column(name).values for name in (answers.name, passage))
    return all(str(answer) in str(text) for answer, text in zip(*columns, strict=True))


def _guess_text(profiles: Profiles, text: Sequence[str], target: _Target, *, where: str) -> tuple[tuple[str, ...], str]:
    """Return the one or two columns of the text, and the reason."""
    if text:
        return tuple(text), "given by --text"
    texts = [profile for profile in profiles.values() if profile.is_text and profile is not target.column]
    by_name = {profile.name.casefold(): profile.name for profile in texts}
    for pair in PAIR_NAMES:
        if all(name in by_name for name in pair):
            return tuple(by_name[name] for name in pair), "a pair of texts, by the names of the columns"
    if not texts or target.kind == "span":
        problem = "a span task reads a question and a passage; give --text QUESTION --text PASSAGE"
        if not texts:
            problem = "no column looks like texts; give --text COLUMN"
        raise _no_guess(profiles, problem, where=where)
    longest = max(texts, key=lambda profile: profile.mean_length * profile.different / profile.rows)
    others = [repr(profile.name) for profile in texts if profile is not longest]
    than = f", longer or more different than {', '.join(others)}" if others else ", the only column of texts"
    return (longest.name,), f"{longest.describe()}{than}"


def _guess_metric(target: _Target) -> tuple[str, str]:
    """Return a metric of the kind, and the reason with the other metrics."""
    metrics = KIND_SCHEMAS[target.kind].allowed_metrics(target.kind)
    metric, reason = metrics[0], f"the usual one of a {target.kind} task"
    counts = target.column.counts.most_common()
    if target.kind == "classification" and (
        counts[0][1] >= IMBALANCED_SHARE * target.column.rows or counts[0][1] >= IMBALANCED_RATIO * counts[-1][1]
    ):
        metric, reason = "macro_f1", f"labels are rare: {counts[0][1]} rows have one, {counts[-1][1]} another"
    return metric, f"{reason}; or {', '.join(alternative for alternative in metrics if alternative != metric)}"


def _stream_name(drafts: Sequence[TaskDraft], files: Sequence[Path]) -> tuple[str, str]:
    folders = {file.absolute() if file.is_dir() else file.absolute().parent for file in files}
    if len(drafts) > 1 and len(folders) == 1 and (name := task_name(folders.pop().name)):
        return name, "the name of the files' folder"
    return drafts[0].spec.name, "the name of the first task"


def _read_length(tasks: Iterable[TaskData]) -> tuple[int, str]:
    """Return how many tokens of a text to read, and the reason."""
    sizes = sorted(_size(text) for data in tasks for text in data.train.texts)
    size = sizes[min(int(READ_SHARE * len(sizes)), len(sizes) - 1)]
    length = next((length for length in READ_LENGTHS if length * BYTES_PER_TOKEN >= size), READ_LENGTHS[-1])
    tokens = size // BYTES_PER_TOKEN + 1
    return length, f"{READ_SHARE:.0%} of the texts have at most {size} bytes, so hardly more than {tokens} tokens"


def _size(text: Text) -> int:
    return sum(len(part.encode("utf-8", "replace")) for part in text_parts(text))


def _no_guess(profiles: Profiles, problem: str, *, where: str) -> DataError:
    columns = "".join(f"\n  {profile.name!r}: {profile.describe()}" for profile in profiles.values())
    return DataError(f"{where}: {problem}. The columns are{columns}")
