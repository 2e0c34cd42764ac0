"""What people write in stream and task files: pydantic models, frozen, in which an unknown key is an error."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from tasks.kind_requirements import KIND_SCHEMAS, Kind
from tasks.strict_model import StrictModel
from tasks.template import Template

Split = Literal["train", "validation", "test"]
WarmStart = Literal["scratch", "nearest", "merge", "auto"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LOCAL_BUILDERS = ("arrow", "csv", "json", "parquet", "text")  # builders of `datasets` that read the user's own files


def _text_columns(value: Any) -> Any:
    """One readable message where pydantic would report every branch of the union."""
    one = isinstance(value, str) and value != ""
    two = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, str) and v for v in value)
    if not (one or two):
        raise ValueError("should be the name of one column, or [first, second] for a pair of texts")
    return value


def _files(value: Any) -> Any:
    many = isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value)
    if not (many or (isinstance(value, str) and value)):
        raise ValueError("should be the name of one file, or a list of such names")
    return value


Column = Annotated[str, Field(min_length=1)]
TextColumns = Annotated[str | tuple[str, str], BeforeValidator(_text_columns)]
Files = Annotated[str | list[str], BeforeValidator(_files)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\z", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and PyTorch both take


class Source(StrictModel):
    """Where rows come from: arguments of `datasets.load_dataset`.

    `splits` says what the source calls a split of ours, `{validation: dev}`; one not named there goes by its
    own name.
    """

    path: Column
    name: str | None = None
    data_files: dict[str, Files] | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: dict[Split, Column] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _local_files_are_named(self) -> Source:
        if self.path in LOCAL_BUILDERS and not (self.data_files or self.data_dir):
            raise ValueError(f"path: {self.path} reads your own files; name them in data_files: {{train: FILE, …}}")
        used = {self.split_name(split).partition("[")[0] for split in SPLITS}
        # A file under a name that nobody asks for would be ignored in silence, and its split carved from train.
        if idle := sorted(set(self.data_files or {}) - used):
            raise ValueError(
                f"data_files: {', '.join(map(repr, idle))} would never be read; allowed are {', '.join(sorted(used))}; "
                "rename it, or say which split it is: splits: {validation: NAME}"
            )
        return self

    def split_name(self, split: Split) -> str:
        """What the source calls our `split`."""
        return self.splits.get(split, split)


class Budget(StrictModel):
    """How much training a task gets; zero epochs is a valid budget (the closed-form head alone)."""

    epochs: int = Field(default=3, ge=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    max_length: int = Field(default=128, ge=8, description="tokens of a text that are read")
    joint: int = Field(default=1, ge=1, le=1024, description="tasks that may be trained in one pass, with this one")
    checkpointing: bool = Field(
        default=False,
        exclude_if=lambda chosen: not chosen,  # what was written down before it was there stays what it was
        description="compute layers twice to keep less of them for the gradient",
    )


class Method(StrictModel):
    """The name of a method and its settings, `{name: lora, rank: 8}` or just `lora`.

    Which methods and settings exist is checked where methods live.

    >>> Method.model_validate({"name": "lora", "rank": 8}).settings
    {'rank': 8}
    >>> Method.model_validate("bitfit").name
    'bitfit'
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Column

    @model_validator(mode="before")
    @classmethod
    def _from_bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class TaskSpec(StrictModel):
    """One task: its kind, its rows, its metric, and what it does otherwise than its stream.

    What is right stands in the column `label` (classification, regression), `answers` (span) or `target` (generation,
    with `references` as further right answers). A `budget` here may be partial: what it leaves out comes from the
    stream.
    """

    name: Name
    kind: Kind = "classification"
    source: Source
    text: TextColumns
    label: Column | None = Field(default=None, validate_default=True)
    target: Column | None = Field(default=None, validate_default=True)
    answers: Column | None = Field(default=None, validate_default=True)
    references: Column | None = Field(default=None, validate_default=True)
    template: Template | None = Field(default=None, validate_default=True, exclude_if=lambda template: template is None)
    metric: str = Field(default="", validate_default=True)
    rows: dict[Split, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    shots: int | None = Field(default=None, ge=1)
    method: Method | None = None
    warm_start: WarmStart | None = None
    budget: Budget | None = None

    @field_validator("text")
    @classmethod
    def _span_has_a_passage(cls, value: str | tuple[str, str], info: ValidationInfo) -> str | tuple[str, str]:
        if info.data.get("kind") == "span" and isinstance(value, str):
            raise ValueError("a span task reads two columns, as in `text: [question, context]`")
        return value

    @field_validator("label", "target", "answers", "references", "template")
    @classmethod
    def _key_fits_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind, key = info.data.get("kind"), info.field_name
        if kind is None:
            return value
        needs = KIND_SCHEMAS[kind]
        if value is None and key == needs.target_column:
            raise ValueError(
                f"a {kind} task must name the column of its {needs.target_description}, as in `{key}: {key}`"
            )
        if value is not None and key not in needs.keys:
            raise ValueError(f"a {kind} task has no use for {key!r}, only for {', '.join(needs.keys)}; drop it")
        return value

    @field_validator("metric")
    @classmethod
    def _metric_fits_kind(cls, value: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if kind is None:
            return value
        metrics = KIND_SCHEMAS[kind].allowed(kind)
        if value and value not in metrics:
            raise ValueError(f"a {kind} task is scored by one of {', '.join(metrics)}")
        return value or metrics[0]

    @field_serializer("budget")
    def _only_what_was_set(self, budget: Budget | None) -> dict[str, Any] | None:
        # Defaults written out would come back as overrides of the stream's budget.
        return budget.model_dump(exclude_unset=True) if budget else None


class TaskFile(TaskSpec):
    """A lone task file: the keys of a task, and the two of a stream that one task can need."""

    backbone: str | None = None
    seed: Seed = 0


class Stream(StrictModel):
    """Tasks in order of arrival, with what they have in common.

    `measure_gain`: where a warm start was taken, train from scratch too and report the difference.
    `folder` is where relative data files are looked for: the stream file's own folder, never written out.
    """

    name: Name
    backbone: str | None = None
    seed: Seed = 0
    method: Method = Method(name="lora")
    warm_start: WarmStart = "auto"
    budget: Budget = Budget()
    measure_gain: bool = False
    tasks: tuple[TaskSpec, ...]
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("tasks")
    @classmethod
    def _some_with_names_of_their_own(cls, tasks: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        if not tasks:  # as a length limit of the field this would also be said whenever a task is wrong
            raise ValueError("a stream needs at least one task")
        twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
        if twice:
            raise ValueError(f"two tasks of a stream cannot share a name; used twice: {', '.join(twice)}; rename one")
        return tasks

    def resolved(self) -> tuple[TaskSpec, ...]:
        """Every task with method, warm start and budget filled in from the stream."""
        return tuple(self._resolve(task) for task in self.tasks)

    def _resolve(self, task: TaskSpec) -> TaskSpec:
        own = {key: getattr(task.budget, key) for key in task.budget.model_fields_set} if task.budget else {}
        filled = {
            "method": task.method or self.method,
            "warm_start": task.warm_start or self.warm_start,
            "budget": Budget(**(self.budget.model_dump() | own)),
        }
        return task.model_copy(update=filled)
