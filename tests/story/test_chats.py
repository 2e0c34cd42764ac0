"""Conversations end to end: the example of the documentation is drafted, checked, learned, answered and exported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from continual import Learner, read_stream
from continual.deltas import load_delta
from continual.kinds import kind_of_delta
from continual.learning.wrong_answers import find_wrong_answers
from registry import Registry
from tasks import Conversation, Message, Stream
from tests.helpers.cli import CliRunner
from tests.helpers.paths import DOCS
from tests.helpers.tiny_models import CHATML
from tests.helpers.tiny_tasks import save_backbone, tiny_chat_backbone

EXAMPLE = DOCS / "examples" / "chats.yaml"
SYSTEM = "You answer the customers of a shop in one sentence."
BRIEF = {"epochs": 1, "max_prompt": 400, "max_new_tokens": 12}  # a tiny vocabulary has many tokens for a word


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tiny_chat_backbone(), tmp_path_factory.mktemp("chat"))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", str(tmp_path / "blobs")) as opened:
        yield opened


def example(**keys: object) -> Stream:
    stream = read_stream(EXAMPLE)
    task = stream.tasks[0].model_copy(update={"rows": {"train": 8, "validation": 2, "test": 2}, **keys})
    return stream.model_copy(update={"tasks": (task,), "budget": stream.budget.model_copy(update=BRIEF)})


def test_the_example_is_checked_and_shows_a_row(cli: CliRunner, folder: Path) -> None:
    backbone = ("--backbone", str(folder), "--dtype", "float32")
    checked = cli("run", str(EXAMPLE), "--check", "--json", *backbone)
    assert checked.code == 0, checked.err
    (row,) = checked.json
    assert row["example"]["prompt"].startswith(f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n")
    assert row["example"]["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert row["example"]["target"].endswith("<|im_end|>")
    assert "support: prompt of one row, as the model reads it:\n  <|im_start|>system" in checked.err
    assert "are longer than what is read of them" in checked.err, "the tiny vocabulary makes many tokens"
    assert "budget.max_prompt or max_new_tokens (now 256 and 40" in checked.err
    assert "assistant turns that are learned, a row for each" in checked.err
    table = cli("run", str(EXAMPLE), "--check", *backbone)
    assert "im_start" not in table.out


def test_the_page_shows_the_example() -> None:
    page = (DOCS / "how-to" / "instruction-data.md").read_text(encoding="utf-8")
    assert EXAMPLE.read_text(encoding="utf-8") in page


def test_the_files_of_the_example_are_recognised(cli: CliRunner, tmp_path: Path) -> None:
    written = tmp_path / "stream.yaml"
    drafted = cli("init", str(EXAMPLE.parent / "chats" / "support.jsonl"), "--output", str(written), "--json")
    assert drafted.code == 0, drafted.err
    (row,) = drafted.json
    assert (row["kind"], row["target"]) == ("generation", "messages")
    (task,) = yaml.safe_load(written.read_text())["tasks"]
    assert task["messages"] == "messages"
    assert not {"text", "target"} & task.keys()


def test_a_conversation_is_learned_answered_and_exported(registry: Registry, tmp_path: Path) -> None:
    learner = Learner(tiny_chat_backbone(), registry)
    learner.learn(example())
    kind = kind_of_delta(load_delta(registry.blobs.get(registry.delta("support@1").values)))
    assert kind.settings()["prompt"] == {"template": CHATML, "system": SYSTEM, "truncate": "head", "max_prompt": 400}
    turns = (Message("user", "My lamp is late."), Message("assistant", "It comes."), Message("user", "Thank you!"))
    (text,) = learner.predict(["My lamp is late."], task="support")
    rows = [{"messages": [{"role": turn.role, "content": turn.content} for turn in turns[:count]]} for count in (1, 3)]
    single, several = learner.predict(rows, task="support")
    assert single.label == text.label
    assert several.text == Conversation(turns)
    predictions = learner.predict(rows, task="support")
    assert "My lamp is late. · It comes. · Thank you!" in predictions._repr_html_()
    wrong = find_wrong_answers(learner.backbone, registry, "support")
    assert wrong.rows == 4
    assert any(isinstance(row.text, Conversation) for row in wrong.wrong), "two conversations of two turns"
    files = learner.export("support@1", tmp_path / "out")
    assert "chat_template.jinja" in files
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert json.dumps(SYSTEM) in card
    learner.import_peft(tmp_path / "out", "support")
    (imported,) = learner.predict(["My lamp is late."], task="support")
    assert imported.label == text.label


def test_the_code_of_a_card_writes_the_same_text(registry: Registry, tmp_path: Path) -> None:
    learner = Learner(tiny_chat_backbone(), registry)
    for name, template in (("chat", None), ("plain", False)):
        learner.learn(example(name=name, chat_template=template, instruction="Answer."))
        learner.export(f"{name}@1", tmp_path / name, form="transformers")
        (answer,) = learner.predict(["a text"], task=name)
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        code = card.partition("prompts of this form")[2].partition("```python\n")[2].partition("```")[0]
        values = {
            "tokenizer": AutoTokenizer.from_pretrained(tmp_path / name),
            "model": AutoModelForCausalLM.from_pretrained(tmp_path / name).eval(),
        }
        exec(code.replace("DIR", str(tmp_path / name)), values)
        written = values["written"][0, values["batch"]["input_ids"].shape[1] :]
        assert values["tokenizer"].decode(written, skip_special_tokens=True).strip() == answer.label
