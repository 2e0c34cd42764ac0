"""Rows of generation tasks as people have them: messages, and prompts with completions."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tasks import DataError, TaskData, TaskSpec, load_task, load_validation
from tasks.conversation import Conversation, Message, messages_of, parse_messages, text_as_json, text_of, text_parts
from tasks.rows import GenerationTarget

SPLITS = ("train", "validation", "test")


def message(role: str, content: Any, **further: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **further}


def user(content: Any) -> dict[str, Any]:
    return message("user", content)


def assistant(content: Any, **further: Any) -> dict[str, Any]:
    return message("assistant", content, **further)


def spec(folder: Path, rows: list[dict[str, Any]], *, splits: tuple[str, ...] = SPLITS, **keys: Any) -> TaskSpec:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "json", "data_files": dict.fromkeys(splits, "rows.jsonl")}
    return TaskSpec.model_validate({"name": "t", "kind": "generation", "source": source} | keys)


def load(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> TaskData:
    return load_task(spec(folder, rows, **keys), folder=folder, seed=0)


def answer(text: str) -> GenerationTarget:
    return GenerationTarget(text, (text,))


def test_each_assistant_turn_after_a_users_is_a_row(tmp_path: Path) -> None:
    turns = [assistant("welcome"), user("hi"), assistant("hello"), user("who?"), assistant("me"), user("bye")]
    data = load(tmp_path, [{"chat": turns}], messages="chat")
    greeting = (Message("assistant", "welcome"), Message("user", "hi"))
    later = (*greeting, Message("assistant", "hello"), Message("user", "who?"))
    for rows in (data.train, data.validation, data.test):
        assert rows.texts == (Conversation(greeting), Conversation(later))
        assert rows.targets == (answer("hello"), answer("me"))
    assert data.notes[0] == "train: 1 conversations have 2 assistant turns that are learned, a row for each"
    assert load_validation(data.spec, folder=tmp_path, seed=0) == data.validation


def test_turns_of_weight_0_are_read_and_not_learned(tmp_path: Path) -> None:
    turns = [
        user("a"),
        assistant("b", weight=0),
        user("c"),
        assistant("d", weight=1),
        user("e"),
        assistant("f", weight=0),
    ]
    data = load(tmp_path, [{"messages": turns}], messages="messages")
    assert data.train.targets == (answer("d"),)
    assert [text_parts(text) for text in data.train.texts] == [("a\nb\nc",)]


def test_one_question_is_an_ordinary_text(tmp_path: Path) -> None:
    pairs = [{"q": f"q{i}", "a": f"a{i}"} for i in range(4)]
    chats = [{"m": [user(row["q"]), assistant([{"type": "text", "text": row["a"]}])]} for row in pairs]
    plain, chat = load(tmp_path, pairs, text="q", target="a"), load(tmp_path, chats, messages="m")
    assert plain.train == chat.train
    assert plain.train.fingerprint == chat.train.fingerprint


def test_prompt_and_completion_are_text_and_target(tmp_path: Path) -> None:
    pairs = [{"p": f"q{i}", "c": f"a{i}"} for i in range(4)]
    named, renamed = spec(tmp_path, pairs, text="p", target="c"), spec(tmp_path, pairs, prompt="p", completion="c")
    assert named == renamed
    assert named.model_dump(mode="json") == renamed.model_dump(mode="json")
    assert TaskSpec.model_validate(renamed.model_dump(mode="json")) == renamed


def test_prompts_and_completions_may_be_messages(tmp_path: Path) -> None:
    system, question = message("developer", "be brief"), user("q")
    rows = [{"prompt": [system, question, assistant("x"), question], "completion": [assistant("a")]}]
    data = load(tmp_path, rows, prompt="prompt", completion="completion")
    (text,) = data.train.texts
    assert [item.role for item in messages_of(text)] == ["system", "user", "assistant", "user"]
    assert data.train.targets == (answer("a"),)
    rows = [{"prompt": [question], "completion": [assistant("a"), user("r"), assistant("b")]}]
    data = load(tmp_path, rows, prompt="prompt", completion="completion")
    assert data.train.targets == (answer("a"), answer("b"))
    assert data.train.texts[0] == "q"
    assert text_as_json(data.train.texts[1]) == [user("q"), assistant("a"), user("r")]


def test_the_turns_of_a_conversation_stay_in_one_split(tmp_path: Path) -> None:
    rows = [
        {"m": [turn for number in range(3) for turn in (user(f"{name} {number}"), assistant("yes"))]}
        for name in "abcdefghijkl"
    ]
    data = load(tmp_path, rows, splits=("train",), messages="m")
    names = [{text_parts(text)[0][0] for text in rows.texts} for rows in (data.train, data.validation, data.test)]
    assert sum(map(len, names)) == len(set.union(*names)) == 12
    assert len(data.train) == 3 * len(names[0])


@pytest.mark.parametrize(
    "value",
    [
        [user("q")],
        [assistant("a")],
        [],
        "q",
        [user("q"), message("robot", "a")],
        [user("q"), assistant(None)],
        [user("q"), assistant([{"type": "image_url", "image_url": "x"}])],
        [user("q"), assistant("a", weight=0)],
    ],
    ids=str,
)
def test_a_row_without_a_learned_turn_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"'t', train: column 'm', row 1: .* is not a list of messages such as"):
        load(tmp_path, [{"m": value}], messages="m")


@pytest.mark.parametrize(
    ("last", "fault"),
    [
        (message("robot", "a"), "message 42 has the role 'robot'"),
        ({"content": "a"}, "message 42 has the role None"),
        (message("assistant", None), "message 42 has the content None"),
    ],
)
def test_the_message_that_cannot_be_read_is_named(tmp_path: Path, last: dict[str, Any], fault: str) -> None:
    turns = [turn for _ in range(20) for turn in (user("q"), assistant("a"))]
    rows = [{"m": [*turns, user("q"), last], "p": [*turns, user("q"), last], "c": [last]}]
    with pytest.raises(DataError, match=f"column 'm', row 1: {fault}: "):
        load(tmp_path, rows, messages="m")
    with pytest.raises(DataError, match=f"column 'p', row 1: {fault}: "):
        load(tmp_path, rows, prompt="p", completion="c")


def test_messages_that_are_one_text_are_refused(tmp_path: Path) -> None:
    rows = [{"m": json.dumps([user("q"), assistant("a")])}]
    with pytest.raises(DataError, match=r"the messages are one text \(write the list itself, in JSON lines"):
        load(tmp_path, rows, messages="m")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompt": "p", "text": "q", "completion": "c"}, "'prompt' is another name of 'text': give one of them"),
        ({"messages": "m", "target": "c"}, "a column of messages has text and target: drop 'target'"),
        ({"prompt": "p"}, "must name the column of its targets"),
        ({"messages": "m", "truncate": "end"}, "'head', 'tail' or 'middle'"),
        ({"messages": "m", "system": ""}, "at least 1 character"),
        ({"kind": "classification", "text": "t", "label": "l", "system": "x"}, "has no use for 'system'"),
        ({"kind": "classification", "text": "t", "label": "l", "messages": "x"}, "has no use for 'messages'"),
        ({"kind": "classification", "prompt": "t", "text": "t", "label": "l"}, "has no use for 'prompt'"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(tmp_path, [], **keys)


def test_new_keys_leave_the_json_of_other_specs_as_it_was(tmp_path: Path) -> None:
    chosen = spec(tmp_path, [], text="q", target="a", budget={"epochs": 1})
    keys = "name kind source text label target answers references metric rows shots method warm_start budget"
    assert list(chosen.model_dump(mode="json")) == keys.split()
    assert chosen.model_dump(mode="json")["budget"] == {"epochs": 1}


def test_other_values_are_no_messages() -> None:
    assert parse_messages([message("user", "hi"), "hello"]) is None
    assert parse_messages({"role": "user"}) is None
    assert text_of([Message("system", "s")]) == Conversation((Message("system", "s"),))
