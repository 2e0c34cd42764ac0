"""Conversations: messages of a system, a user and an assistant, as TRL and OpenAI write them in a column.

A row of a task is one assistant turn: the messages before it are the text, and the turn is the target. Until the splits
are made a conversation of several turns is one row, so that its turns stay in one split; afterwards each turn is a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT, "tool")
MESSAGES = (
    'a list of messages such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], with the '
    f"roles {', '.join(ROLES)}"
)
_SAME_ROLE = {"developer": SYSTEM}  # OpenAI's later name of it


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: One of `ROLES`.
        content: The text.
        learned: Whether this is an assistant's turn that is learned, among the messages before the target.
    """

    role: str
    content: str
    learned: bool = False


class Conversation(NamedTuple):
    """The messages that are read before the next one is written.

    Attributes:
        messages: At least one message.
    """

    messages: tuple[Message, ...]

    @property
    def plain_text(self) -> str:
        """The contents without roles, one per line; without those of the system."""
        return "\n".join(message.content for message in self.messages if message.role != SYSTEM)


Text = str | tuple[str, str] | Conversation


def parse_messages(value: Any) -> tuple[Message, ...] | None:
    """Return the messages of a list as TRL and OpenAI write it, or None for anything else.

    An assistant's message is learned, unless it has OpenAI's `"weight": 0`.

    >>> parse_messages([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi", "weight": 0}])
    (Message(role='user', content='hello', learned=False), Message(role='assistant', content='hi', learned=False))
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        return None
    messages = tuple(message for message in map(_parse_message, value) if message)
    return messages if len(messages) == len(value) else None


def message_fault(value: Any) -> str | None:
    """Describe the first message that cannot be read, or that a text stands for a list; None where neither is so.

    >>> message_fault([{"role": "user", "content": "hello"}, {"role": "robot", "content": "hi"}])
    "message 2 has the role 'robot'"
    """
    if isinstance(value, str):
        return "the messages are one text (write the list itself, in JSON lines or Parquet)"
    if isinstance(value, Mapping) or not isinstance(value, Sequence):
        return None
    for number, message in enumerate(value, start=1):
        if _parse_message(message):
            continue
        if not isinstance(message, Mapping):
            return f"message {number} is {message!r:.80}"
        role = message.get("role")
        field = "content" if isinstance(role, str) and _SAME_ROLE.get(role, role) in ROLES else "role"
        return f"message {number} has the {field} {message.get(field)!r:.80}"
    return None


def _parse_message(value: Any) -> Message | None:
    if not isinstance(value, Mapping):
        return None
    role, content, weight = value.get("role"), _content(value.get("content")), value.get("weight")
    role = _SAME_ROLE.get(role, role) if isinstance(role, str) else None
    if role not in ROLES or content is None:
        return None
    return Message(role, content, learned=role == ASSISTANT and weight != 0)


def _content(value: Any) -> str | None:
    """Return the text of a message: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        return None
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def text_of(messages: Sequence[Message]) -> Text:
    """Return messages as the text of a row; a user's only message is an ordinary text.

    >>> text_of([Message("user", "hello")])
    'hello'
    """
    if len(messages) == 1 and messages[0].role == USER:
        return messages[0].content
    return Conversation(tuple(messages))


def messages_of(text: Text) -> tuple[Message, ...]:
    r"""Return a text as messages: a text, or a pair on two lines, is a user's message.

    >>> messages_of(("passage", "question"))
    (Message(role='user', content='passage\nquestion', learned=False),)
    """
    return text.messages if isinstance(text, Conversation) else (Message(USER, "\n".join(text_parts(text))),)


def text_parts(text: Text) -> tuple[str, ...]:
    """Return the plain texts of a text: itself, the two of a pair, or a conversation's without roles."""
    if isinstance(text, str):
        return (text,)
    return (text.plain_text,) if isinstance(text, Conversation) else text


def text_as_json(text: Text) -> Any:
    """Return a text as JSON: a string, a list of two, or a list of messages."""
    if isinstance(text, Conversation):
        return [{"role": message.role, "content": message.content} for message in text.messages]
    return text
