"""Pydantic models of stream and task files: frozen; unknown keys are errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
from pydantic_core import PydanticCustomError

from tasks.kind_schemas import KIND_SCHEMAS
from tasks.readout_choice import ReadoutChoice
from tasks.source_spec import MAX_NAME_LENGTH, Column, Location, Source, Split, optional
from tasks.strict_model import StrictModel
from tasks.template import Template

WarmStart = Literal["scratch", "nearest", "merge", "auto"]
Truncation = Literal["head", "tail", "middle"]


def _text_columns(value: Any) -> Any:
    """Validate the text columns with one message; pydantic would report every branch of the union."""
    is_single = isinstance(value, str) and value != ""
    is_pair = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(v, str) and v for v in value)
    if not (is_single or is_pair) or any(len(v) > MAX_NAME_LENGTH for v in ([value] if is_single else value)):
        raise PydanticCustomError(
            "string_type", "should be the name of one column, or [first, second] for a pair of texts"
        )
    return value


MAX_ROWS = 10**12
MAX_LITERAL_LENGTH = 100_000  # characters of a literal text
Literally = Annotated[str, Field(min_length=1, max_length=MAX_LITERAL_LENGTH)]
TextColumns = Annotated[str | tuple[str, str], BeforeValidator(_text_columns)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\z", max_length=100)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # the range that NumPy and PyTorch both accept


class Budget(StrictModel):
    """The amount of training per task; zero epochs is valid (the closed-form head alone).

    Attributes:
        epochs: Passes over the train rows.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        max_length: Maximum tokens per text.
        joint: Number of tasks that may share one forward pass in training, including this one.
        checkpointing: Recompute layers in the backward pass (gradient checkpointing) to save memory.
        max_prompt: Maximum tokens of a generation task's prompt, with its template; the default is `max_length`.
        max_new_tokens: Maximum tokens of a generation task's targets and answers; the default is the longest target of
            train, or `max_length`.
    """

    epochs: int = Field(default=3, ge=0, le=1_000_000)
    batch_size: int = Field(default=32, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    max_length: int = Field(default=128, ge=8, le=10_000_000, description="tokens of a text that are read")
    joint: int = Field(default=1, ge=1, le=1024, description="tasks that may be trained in one pass, with this one")
    checkpointing: bool = Field(
        default=False,
        exclude_if=lambda enabled: not enabled,  # specs stored before this field existed keep their digests
        description="compute layers twice to keep less of them for the gradient",
    )
    max_prompt: int | None = optional("tokens of a prompt that are read", ge=8, le=10_000_000)
    max_new_tokens: int | None = optional("tokens of a target and of an answer", ge=2, le=10_000_000)


class Method(StrictModel):
    """The name of a method and its settings, `{name: lora, rank: 8}` or just `lora`.

    The names and settings are validated by the packages that define the methods.

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

    @model_validator(mode="after")
    def _numbers_are_of_64_bits(self) -> Method:
        for key, value in self.settings.items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"{key} is a number beyond 64 bits, which no setting may be; write a smaller one")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings: everything but the name."""
        return dict(self.model_extra or {})


_GENERATION_KEYS = ("messages", "prompt", "completion", "system", "instruction", "chat_template", "truncate")


class TaskSpec(StrictModel):
    """One task: its kind, rows, metric, and overrides of its stream's defaults.

    The target column is `label` (classification, regression), `answers` (span) or `target` (generation, with
    `references` as further right answers). A generation task may name `prompt` and `completion` instead of `text` and
    `target`, or one column of `messages`.

    Attributes:
        name: Unique in its stream.
        kind: Classification, regression, span or generation.
        source: Where the rows are read from.
        text: One column, or [first, second] for a pair of texts.
        label: Column of labels or numbers.
        target: Column of texts to generate.
        answers: Column of answers in the passage.
        references: Column of further accepted texts.
        prompt: Another name of `text`, which the spec has then.
        completion: Another name of `target`, which the spec has then.
        messages: Column of conversations, whose assistant turns are the targets; `text` has the same column then.
        system: Literal system message of every prompt.
        instruction: Literal text before every text.
        chat_template: Whether prompts are written in the tokenizer's chat template; by default wherever a causal
            backbone has one.
        truncate: The part of a long prompt that is left out; by default its head.
        template: Classification by filling a gap.
        readout: Where a head reads; by default as the backbone was pretrained, on a causal one the best on the rows.
        metric: The default is the first metric of the kind.
        rows: Maximum number of rows by split: seeded, stratified; train keeps every label.
        shots: Rows per label of train.
        method: Overrides the stream's method.
        warm_start: Overrides the stream's warm start.
        budget: Overrides the stream's budget, field by field.
        strict: Overrides the stream's `strict`.
        route: False where the router never chooses the task, so that only inputs that name it are answered by it.
    """

    name: Name
    kind: str = "classification"
    source: Source
    text: TextColumns
    messages: Column | None = optional("column of conversations")
    label: Column | None = Field(default=None, validate_default=True)
    target: Column | None = Field(default=None, validate_default=True)
    answers: Column | None = Field(default=None, validate_default=True)
    references: Column | None = Field(default=None, validate_default=True)
    prompt: TextColumns | None = optional("another name of text")
    completion: Column | None = optional("another name of target")
    system: Literally | None = optional("system message of every prompt")
    instruction: Literally | None = optional("text before every text")
    chat_template: bool | None = optional("write prompts in the tokenizer's chat template")
    truncate: Truncation | None = optional("part of a long prompt that is left out")
    template: Template | None = Field(default=None, validate_default=True, exclude_if=lambda template: template is None)
    readout: ReadoutChoice | None = optional("where the head reads")
    metric: str = Field(default="", validate_default=True)
    rows: dict[Split, Annotated[int, Field(ge=1, le=MAX_ROWS)]] = Field(default_factory=dict)
    shots: int | None = Field(default=None, ge=1, le=MAX_ROWS)
    method: Method | None = None
    warm_start: WarmStart | None = None
    budget: Budget | None = None
    strict: bool | None = optional("refuse suspicious rows")
    route: bool | None = optional("whether the router may choose the task")

    @model_validator(mode="before")
    @classmethod
    def _text_and_target_have_one_name(cls, values: Any) -> Any:
        kind = values.get("kind") if isinstance(values, Mapping) else None
        if not isinstance(kind, str) or kind not in KIND_SCHEMAS:
            return values
        schema = KIND_SCHEMAS[kind]
        renamed = dict(values)
        for key, name in (("prompt", "text"), ("completion", "target")):
            if key in schema.keys and renamed.get(key) is not None:
                if renamed.get(name) is not None:
                    raise ValueError(f"{key!r} is another name of {name!r}: give one of them")
                renamed[name] = renamed.pop(key)
        if "messages" in schema.keys and (column := renamed.get("messages")) is not None:
            if others := [repr(key) for key in ("text", "target") if renamed.get(key) not in (None, column)]:
                raise ValueError(f"a column of messages has text and target: drop {', '.join(others)}, or messages")
            renamed["text"] = column
        return renamed

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, value: str) -> str:
        if value not in KIND_SCHEMAS:
            *kinds, last = map(repr, KIND_SCHEMAS)
            raise ValueError(f"input should be {', '.join(kinds)} or {last}")
        return value

    @field_validator("text")
    @classmethod
    def _span_reads_a_pair(cls, value: str | tuple[str, str], info: ValidationInfo) -> str | tuple[str, str]:
        kind = info.data.get("kind")
        if kind and KIND_SCHEMAS[kind].targets == "answers" and isinstance(value, str):
            raise ValueError(f"a {kind} task reads two columns, as in `text: [question, context]`")
        return value

    @field_validator("label", "target", "answers", "references", "template", "readout", *_GENERATION_KEYS)
    @classmethod
    def _key_fits_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind, key = info.data.get("kind"), info.field_name
        if kind is None:
            return value
        schema = KIND_SCHEMAS[kind]
        if value is None and key == schema.target_column and not info.data.get("messages"):
            raise ValueError(
                f"a {kind} task must name the column of its {schema.target_description}, as in `{key}: {key}`"
            )
        if value is not None and key not in schema.keys:
            raise ValueError(f"a {kind} task has no use for {key!r}, only for {', '.join(schema.keys)}; drop it")
        return value

    @field_validator("metric")
    @classmethod
    def _metric_fits_kind(cls, value: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind")
        if kind is None:
            return value
        metrics = KIND_SCHEMAS[kind].allowed_metrics(kind)
        if value and value not in metrics:
            raise ValueError(f"a {kind} task is scored by one of {', '.join(metrics)}")
        return value or metrics[0]

    @field_serializer("budget")
    def _set_fields_only(self, budget: Budget | None) -> dict[str, Any] | None:
        # Defaults written out would come back as overrides of the stream's budget.
        return budget.model_dump(exclude_unset=True) if budget else None


class TaskFile(TaskSpec):
    """A task file: the keys of a task, plus a stream's `backbone` and `seed`."""

    backbone: Location | None = None
    seed: Seed = 0


class Stream(StrictModel):
    """Tasks in order of arrival, with their common settings.

    Attributes:
        name: The stream's name.
        backbone: A name of settings, a hub id or a folder.
        seed: Seed of sampling, initialisation and training.
        method: Default method of the tasks.
        warm_start: Default warm start of the tasks.
        budget: Default budget of the tasks.
        measure_gain: Where a warm start was chosen, also train from scratch and report the difference.
        strict: Refuse tasks whose rows are suspicious, instead of warning.
        tasks: At least one, with distinct names.
        folder: Base of relative data files: the stream file's folder; never serialised.
    """

    name: Name
    backbone: Location | None = None
    seed: Seed = 0
    method: Method = Method(name="lora")
    warm_start: WarmStart = "auto"
    budget: Budget = Budget()
    measure_gain: bool = False
    strict: bool = Field(default=False, exclude_if=lambda strict: not strict, description="refuse suspicious rows")
    tasks: tuple[TaskSpec, ...]
    folder: Path = Field(default=Path(), exclude=True)

    @field_validator("tasks")
    @classmethod
    def _not_empty_and_names_distinct(cls, tasks: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        if not tasks:  # a length limit of the field would also be reported whenever a task is invalid
            raise ValueError("a stream needs at least one task")
        duplicates = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
        if duplicates:
            raise ValueError(
                f"two tasks of a stream cannot share a name; used twice: {', '.join(duplicates)}; rename one"
            )
        return tasks

    def resolved(self) -> tuple[TaskSpec, ...]:
        """Return every task with method, warm start and budget completed from the stream."""
        return tuple(self._resolve(task) for task in self.tasks)

    def _resolve(self, task: TaskSpec) -> TaskSpec:
        overrides = {key: getattr(task.budget, key) for key in task.budget.model_fields_set} if task.budget else {}
        resolved = {
            "method": task.method or self.method,
            "warm_start": task.warm_start or self.warm_start,
            "budget": Budget(**(self.budget.model_dump() | overrides)),
            "strict": (self.strict or None) if task.strict is None else task.strict,
        }
        return task.model_copy(update=resolved)
