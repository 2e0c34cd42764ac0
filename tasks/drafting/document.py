"""A draft as a stream file whose comments give the reason of each value, and what else may be set."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from tasks.drafting.draft import StreamDraft, TaskDraft
from tasks.kind_schemas import KIND_SCHEMAS

WIDTH = 100  # characters of a line with a comment
HEADER = """Written by `continual init` after a look at the files: every value is a guess, with its reason above it.
Correct what is wrong, check the file with `continual run FILE --check`, and learn it with `continual run FILE`.
Every key is described in docs/reference/stream-file.md."""
BACKBONE = "the frozen model: a name, an id of the hub, or a folder"
SEED = "of held-out rows, initial values and the order of batches"
METHOD = "or {name: lora, rank: 4}, bitfit, adapter, prefix, …; auto compares several on held-out rows"
WARM_START = "auto starts from similar learned tasks where that is better; or scratch, nearest, merge"
OPTIONAL_KEYS = """Further keys of a task:
  rows: {train: 1000}             at most so many rows of a split
  shots: 16                       so many rows per label of train
  strict: true                    refuse suspicious rows instead of warning
  system, instruction             texts before every text of a generation task
  method, warm_start, budget      as above, for this task alone"""
BUDGET_KEYS = {"epochs", "batch_size", "learning_rate", "max_length"}


class _Dumper(yaml.SafeDumper):
    """A dumper that keeps every scalar on one line."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


def to_yaml(draft: StreamDraft) -> str:
    """Return the stream file of a draft."""
    stream = draft.stream
    entries = (
        ("name", stream.name, f"{draft.reasons['name']}; `continual report` lists the stream by it"),
        ("backbone", stream.backbone, BACKBONE),
        ("seed", stream.seed, SEED),
        ("method", stream.method.name, METHOD),
        ("warm_start", stream.warm_start, WARM_START),
        ("budget", stream.budget.model_dump(include=BUDGET_KEYS), f"max_length: {draft.reasons['budget']}"),
    )
    lines = [*_comment(HEADER), ""]
    for key, value, comment in entries:
        lines += [*_comment(comment), f"{key}: {_flow(value)}"]
    lines += ["", "tasks:"]
    for task in draft.tasks:
        lines += [*_task_lines(task), ""]
    return "\n".join([*lines, *(f"# {line}" for line in OPTIONAL_KEYS.splitlines()), ""])


def _task_lines(draft: TaskDraft) -> Iterator[str]:
    """Yield the lines of one task: each key, with its reason above it."""
    spec = draft.spec
    values = {
        "name": spec.name,
        "kind": spec.kind,
        "source": spec.source.model_dump(exclude_defaults=True),
    }
    if spec.messages:
        values["messages"] = spec.messages
    else:
        values["text"] = spec.text if isinstance(spec.text, str) else list(spec.text)
        target = KIND_SCHEMAS[spec.kind].target_column
        values[target] = getattr(spec, target)
    values["metric"] = spec.metric
    comments = {key: [reason] for key, reason in draft.reasons.items()} | {"source": _source_comments(draft)}
    for key, value in values.items():
        indent = "  " if key == "name" else "    "
        for comment in comments[key]:
            yield from _comment(comment, indent=indent)
        yield f"{'  - ' if key == 'name' else indent}{key}: {_flow(value)}"


def _source_comments(draft: TaskDraft) -> Sequence[str]:
    """Return the numbers of rows, what was held out, left out or not used, and the warnings about the rows."""
    data = draft.data
    sizes = f"rows: train {len(data.train)}, validation {len(data.validation)}, test {len(data.test)}"
    return (sizes, *data.notes, *draft.notes, *(f"warning: {warning}" for warning in data.warnings))


def _comment(text: str, *, indent: str = "") -> list[str]:
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    return textwrap.wrap(
        printable, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False
    )


def _flow(value: Any) -> str:
    """Return a value on one line, quoted where YAML needs it."""
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text.strip()[1:-1]
