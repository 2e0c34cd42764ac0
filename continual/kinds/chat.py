"""Prompts of generation tasks: messages in a chat template or as plain lines, cut where they are too long.

What a person wrote never becomes a special token: a typed `<|im_end|>` is encoded as plain text. Only the tokenizer's
framing and the template's own pieces write special tokens.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from typing import Any, NamedTuple

import jinja2

from continual.backbones.backbone import Backbone
from continual.features.tokens import MIN_TEXT_TOKENS, replace_surrogates
from tasks import TaskSpec, Text
from tasks.conversation import ASSISTANT, SYSTEM, USER, Message, messages_of
from tasks.errors import InputError
from tasks.spec import Truncation

# Templates that show today's date would answer differently every day: they show the one that Llama 3's template shows
# where it knows no clock.
SHOWN_DATE = date(2024, 7, 26)
OMISSION = " … "  # in place of the middle of a text
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_ANSWER = "answer"

Ids = tuple[int, ...]
Messages = tuple[Message, ...]


@dataclass(frozen=True)
class PromptFormat:
    """How texts and conversations become prompts; it is stored with the delta.

    Attributes:
        template: The chat template, in Jinja; None writes one message per line, without roles.
        system: System message of prompts that have none of their own.
        instruction: Text before the first user's message that is read.
        truncate: The part of a text that is left out where a prompt is too long.
        max_prompt: Largest number of tokens of a prompt; None takes the task's `max_length`.
    """

    template: str | None = None
    system: str | None = None
    instruction: str | None = None
    truncate: Truncation = "head"
    max_prompt: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def with_context(self, messages: Messages) -> Messages:
        """Return messages with the system message, unless they have one, and with the instruction."""
        if self.instruction:
            gap = "" if self.instruction[-1].isspace() else "\n"
            first = next((i for i, message in enumerate(messages) if message.role == USER), None)
            messages = tuple(
                message._replace(content=f"{self.instruction}{gap}{message.content}") if i == first else message
                for i, message in enumerate(messages)
            )
        if self.system and all(message.role != SYSTEM for message in messages):
            return (Message(SYSTEM, self.system), *messages)
        return messages


class Prompts(NamedTuple):
    """Encoded prompts.

    Attributes:
        ids: The tokens of each prompt.
        excess: The number of tokens that were left out of each.
    """

    ids: tuple[Ids, ...]
    excess: tuple[int, ...]


def prompt_format(backbone: Backbone, spec: TaskSpec) -> PromptFormat:
    """Return the format of a task's prompts: a causal backbone's chat template, unless the task declines it."""
    assert spec.budget  # filled in by `Stream.resolved`
    template = None if spec.chat_template is False else backbone_template(backbone)
    truncate: Truncation = spec.truncate or "head"
    return PromptFormat(template, spec.system, spec.instruction, truncate, spec.budget.max_prompt)


def backbone_template(backbone: Backbone) -> str | None:
    """Return the chat template of a causal backbone's tokenizer, with a fixed date; None where there is none."""
    template = getattr(backbone.tokenizer, "chat_template", None)
    if isinstance(template, dict):  # templates by name
        template = template.get("default")
    if backbone.architecture != "causal" or not template:
        return None
    return _DATE_CALL.sub(lambda call: repr(SHOWN_DATE.strftime(call[2])), template)


def format_obstacles(backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
    """Yield why a backbone cannot write a task's prompts: it has no chat template, or there is no room for a text."""
    assert spec.budget  # filled in by `Stream.resolved`
    chosen = prompt_format(backbone, spec)
    if spec.chat_template and chosen.template is None:
        yield f"chat_template: the tokenizer of {backbone.name!r} has none; drop the key or change the backbone"
        return
    if not (chosen.template or chosen.system or chosen.instruction):
        return
    answer = min(spec.budget.max_new_tokens or spec.budget.max_length, backbone.longest_input // 2)
    limit = min(chosen.max_prompt or spec.budget.max_length, prompt_room(backbone, answer))
    try:
        frame = len(_encoder(backbone, chosen)((Message(USER, ""),)))
    except InputError as error:
        yield str(error)
        return
    if frame + MIN_TEXT_TOKENS > limit:
        yield (
            f"system, instruction and chat template alone are {frame} tokens, of {limit} that are read of a prompt; "
            "shorten them, or raise budget.max_prompt"
        )


def prompt_room(backbone: Backbone, answer: int) -> int:
    """Return the largest number of a prompt's tokens: a causal model's share the positions with those of the answer."""
    return backbone.longest_input - (answer if backbone.architecture == "causal" else 0)


def encode_prompts(backbone: Backbone, chosen: PromptFormat, texts: Sequence[Text], *, limit: int) -> Prompts:
    """Encode texts, pairs and conversations as prompts.

    Of a prompt that is too long, the oldest exchanges of a conversation are left out first, then the part of the last
    user's message that `truncate` names. The task's system message, its instruction and the template stay whole.

    Args:
        backbone: The backbone whose tokenizer is used.
        chosen: The format.
        texts: N texts.
        limit: Largest number of tokens of a prompt.

    Raises:
        InputError: The template refuses the order of a conversation's roles.
    """
    encode = _encoder(backbone, chosen)
    ids, excess = [], []
    for text in texts:
        messages = tuple(message._replace(content=replace_surrogates(message.content)) for message in messages_of(text))
        whole = encode(messages)
        fitting = whole if len(whole) <= limit else _encode_within(backbone, chosen, messages, encode, limit=limit)
        ids.append(fitting)
        excess.append(len(whole) - len(fitting))
    return Prompts(tuple(ids), tuple(excess))


def encode_target(backbone: Backbone, text: str, *, end: int) -> Ids:
    """Return the tokens to write; of a causal model the last one is `end`, see `end_token`."""
    text = replace_surrogates(text)
    if backbone.architecture != "causal":
        return tuple(backbone.tokenizer(text_target=text, split_special_tokens=True)["input_ids"])
    return (*encode_text(backbone, text), end)


def end_token(backbone: Backbone, chosen: PromptFormat) -> int:
    """Return the token that ends an answer: the one by which the template ends a turn, or the tokenizer's."""
    tokenizer = backbone.tokenizer
    ending: int = tokenizer.eos_token_id
    if chosen.template is None:
        return ending
    turns = (Message(USER, "question"), Message(ASSISTANT, _ANSWER))
    try:
        rendered = tokenizer.apply_chat_template(_plain(turns), chat_template=chosen.template, tokenize=False)
    except jinja2.TemplateError:
        return ending
    ids_after_answer = tokenizer(rendered.rpartition(_ANSWER)[2], add_special_tokens=False)["input_ids"]
    special = _special_ids(tokenizer)
    return next((token for token in ids_after_answer if token in special), ending)


def encode_text(backbone: Backbone, text: str) -> Ids:
    """Return the tokens of a text, among which no special token is: what spells one stays text."""
    encode = partial(backbone.tokenizer, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: Ids = tuple(encode(text)["input_ids"])
    special = _special_ids(backbone.tokenizer)
    if special.isdisjoint(ids):
        return ids
    # A unigram vocabulary holds special tokens as pieces: apart from its first character, none is spelt.
    names = sorted(backbone.tokenizer.convert_ids_to_tokens(sorted(special)), key=len, reverse=True)
    parts = re.split("|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names), text)
    return tuple(token for part in parts for token in encode(part)["input_ids"])


def _special_ids(tokenizer: Any) -> set[int]:
    """The ids of special tokens, without the one of unknown words."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _encoder(backbone: Backbone, chosen: PromptFormat) -> Callable[[Messages], Ids]:
    """Return the function that encodes messages, with the context of the format."""
    if chosen.template is not None:
        return lambda messages: _encode_chat(backbone, chosen.template, chosen.with_context(messages))
    before, after = _frame(backbone)
    return lambda messages: (
        *before,
        *encode_text(backbone, "\n".join(message.content for message in chosen.with_context(messages))),
        *after,
    )


def _encode_chat(backbone: Backbone, template: str | None, messages: Messages) -> Ids:
    apply = partial(
        backbone.tokenizer.apply_chat_template,
        chat_template=template,
        add_generation_prompt=True,
        sanitize_control_tokens=True,
        return_dict=False,
        tokenizer_kwargs={"verbose": False},
    )
    try:
        return tuple(apply(_plain(messages)))
    except jinja2.TemplateError as error:
        # Templates without a place for a system message, such as Gemma's, refuse one.
        if (merged := _with_system_in_user(messages)) is None:
            raise InputError(
                f"the chat template of backbone {backbone.name!r} refuses the messages "
                f"{', '.join(message.role for message in messages)}: {error}; reorder them, or set chat_template: false"
            ) from error
    return _encode_chat(backbone, template, merged)


def _with_system_in_user(messages: Messages) -> Messages | None:
    """Return messages whose system message stands in the user's that follows; None where there is no such pair."""
    if [message.role for message in messages[:2]] != [SYSTEM, USER]:
        return None
    system, user, *later_messages = messages
    return (user._replace(content=f"{system.content}\n\n{user.content}"), *later_messages)


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _frame(backbone: Backbone) -> tuple[Ids, Ids]:
    """The tokens before and after a plain prompt: those of the tokenizer, and of a causal model a line break."""
    encode = partial(backbone.tokenizer, verbose=False)
    whole, alone = encode("a")["input_ids"], encode("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
    before, after = tuple(whole[:start]), tuple(whole[start + len(alone) :])
    return before, (*after, *separator(backbone))


def separator(backbone: Backbone) -> Ids:
    """Return the tokens between a plain text and its answer; an encoder-decoder needs none."""
    if backbone.architecture != "causal":
        return ()
    ids = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tuple(ids) or (backbone.tokenizer.eos_token_id,)


def _encode_within(
    backbone: Backbone, chosen: PromptFormat, messages: Messages, encode: Callable[[Messages], Ids], *, limit: int
) -> Ids:
    """Encode messages that are too long, with as little left out as fits `limit` tokens."""
    ids = encode(messages)
    while len(ids) > limit and (later := _without_oldest_exchange(messages)):
        messages = later
        ids = encode(messages)
    for index in _truncation_order(messages):
        text, cut = messages[index].content, partial(_truncate, backbone, messages[index].content)
        token_count = len(_offsets(backbone, text))
        while len(ids) > limit and token_count > 0:
            token_count = max(token_count - (len(ids) - limit), 0)
            shorter = messages[index]._replace(content=cut(token_count, part=chosen.truncate))
            messages = (*messages[:index], shorter, *messages[index + 1 :])
            ids = encode(messages)
    return ids


def _without_oldest_exchange(messages: Messages) -> Messages | None:
    """Return messages from the second user's on, with the system's; None where there is one user's."""
    users = [i for i, message in enumerate(messages) if message.role == USER]
    if len(users) < 2:
        return None
    return (*(message for message in messages[: users[1]] if message.role == SYSTEM), *messages[users[1] :])


def _truncation_order(messages: Messages) -> list[int]:
    """Return the indices of messages: the user's first, the conversation's own system message last."""
    return sorted(range(len(messages)), key=lambda i: {USER: 0, SYSTEM: 2}.get(messages[i].role, 1))


def _truncate(backbone: Backbone, text: str, token_count: int, *, part: Truncation) -> str:
    """Return a text of which about `token_count` tokens remain where one part is left out."""
    offsets = _offsets(backbone, text)
    if token_count <= 0:
        return ""
    if part == "head":
        return text[offsets[-token_count][0] :]
    if part == "tail":
        return text[: offsets[token_count - 1][1]]
    start, end = (token_count + 1) // 2, token_count // 2
    return text[: offsets[start - 1][1]] + OMISSION + (text[offsets[-end][0] :] if end else "")


def _offsets(backbone: Backbone, text: str) -> list[tuple[int, int]]:
    offsets: list[tuple[int, int]] = backbone.tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return offsets
