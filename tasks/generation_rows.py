"""Reading the rows of generation tasks: texts and targets, prompts and completions, or conversations."""

from __future__ import annotations

from typing import Any

from tasks.columns import Column, Table
from tasks.conversation import (
    ASSISTANT,
    MESSAGES,
    USER,
    Message,
    Text,
    message_fault,
    messages_of,
    parse_messages,
    text_of,
)
from tasks.rows import GenerationTarget, LabelledTexts
from tasks.spec import TaskSpec
from tasks.targets import target_column

Turns = tuple[Message, ...]


def read_generation(spec: TaskSpec, table: Table) -> LabelledTexts:
    """Return the texts and the targets of a split; a conversation is one row, whose target is its last learned turn.

    Args:
        spec: The task.
        table: The split's rows.

    Raises:
        DataError: A text or a target is missing or invalid; task, split, column and row are named.
    """
    texts, targets = _read_conversations(spec, table) if spec.messages else _read_pairs(spec, table)
    if spec.references is None:
        references: tuple[tuple[str, ...], ...] = tuple((target,) for target in targets)
    else:
        references = table.column(spec.references).read(
            _parse_texts, allowed="a text or a list of at least one text; mend the row or drop it"
        )
    return LabelledTexts(texts, tuple(GenerationTarget(*row) for row in zip(targets, references, strict=True)))


def _read_conversations(spec: TaskSpec, table: Table) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    assert spec.messages is not None  # as the caller has checked
    rows = table.column(spec.messages).read(
        _parse_conversation,
        allowed=f"{MESSAGES}, with an assistant's after a user's; mend the row or drop it",
        fault=message_fault,
    )
    return _split_at_target(rows)


def _parse_conversation(value: Any) -> Turns | None:
    """Return the messages up to the last learned turn, or None without one; turns before the first user's are read."""
    messages = parse_messages(value) or ()
    first = next((i for i, message in enumerate(messages) if message.role == USER), len(messages))
    learned = [i for i, message in enumerate(messages) if message.learned and i > first]
    if not learned:
        return None
    return tuple(message._replace(learned=i in learned) for i, message in enumerate(messages[: learned[-1] + 1]))


def _read_pairs(spec: TaskSpec, table: Table) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """Return texts and targets, each of which may be a list of messages."""
    texts, column = _read_texts(spec, table), target_column(spec, table)
    if not _holds_lists(column):
        return texts, column.texts()
    completions = column.read(
        _parse_completion,
        allowed="a text, or a list of messages, the last an assistant's; mend the row or drop it",
        fault=message_fault,
    )
    return _split_at_target(
        tuple((*messages_of(text), *completion) for text, completion in zip(texts, completions, strict=True))
    )


def _read_texts(spec: TaskSpec, table: Table) -> tuple[Text, ...]:
    if not isinstance(spec.text, str):
        return tuple(zip(*(table.column(name).texts() for name in spec.text), strict=True))
    column = table.column(spec.text)
    if not _holds_lists(column):
        return column.texts()
    return column.read(_parse_prompt, allowed=f"a text, or {MESSAGES}; mend the row or drop it", fault=message_fault)


def _holds_lists(column: Column) -> bool:
    return any(isinstance(value, list) for value in column.values)


def _parse_prompt(value: Any) -> Text | None:
    if isinstance(value, str):
        return value
    messages = parse_messages(value)
    return text_of([message._replace(learned=False) for message in messages]) if messages else None


def _parse_completion(value: Any) -> Turns | None:
    if isinstance(value, str):
        return (Message(ASSISTANT, value),)
    messages = parse_messages(value)
    return messages if messages and messages[-1].learned else None


def _split_at_target(rows: tuple[Turns, ...]) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    return tuple(text_of(row[:-1]) for row in rows), tuple(row[-1].content for row in rows)


def _parse_texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    is_list = isinstance(value, list) and value and all(isinstance(text, str) for text in value)
    return tuple(value) if is_list else None
