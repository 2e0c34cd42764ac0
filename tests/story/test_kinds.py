"""Tasks of every kind on tiny backbones through the public API: training, scores, routing and refusals."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from continual import Learner, read_stream
from continual.backbones.backbone import freeze
from continual.deltas import Delta, load_delta
from continual.errors import WrongKind
from continual.learning.wrong_answers import find_wrong_answers
from continual.routing import RoutingStatistics
from continual.settings import resolve_locations
from continual.streams.audit import audit_stream
from continual.streams.estimate import estimate_stream
from registry import Registry
from registry.operations.verify import find_damage
from registry.records import require_digest
from tasks import Stream
from tasks.errors import InputError
from tests.conftest import backbone_of
from tests.helpers.tiny_models import FILLER_WORDS, POSITIONS, WORDS, tiny_model, word_pieces
from tests.helpers.tiny_tasks import save_backbone

Row = dict[str, Any]
BUDGET = {"epochs": 6, "batch_size": 8, "learning_rate": 0.01, "max_length": 36}
GOOD, BAD = (WORDS["mood"][label].split() for label in ("good", "bad"))
SEA, CATS = WORDS["place"]["sea"].split(), WORDS["animals"]["cat"].split()
TEMPLATE = {"text": "{{ text }} and {{ mask }}", "words": {"bad": "awful", "good": "superb"}}


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def warmth(draw: random.Random) -> Row:
    """Draw a row of a regression task: the number grows with the good words."""
    count = draw.randint(0, 4)
    words = draw.choices(GOOD, k=count) + draw.choices(BAD, k=4 - count)
    draw.shuffle(words)
    return {"text": " ".join(words), "score": 250.0 * count}


def passage(draw: random.Random) -> Row:
    """Draw a row of a span task: the one word of `sea` in a passage of several windows."""
    words = draw.choices(CATS, k=draw.randint(3, 30))
    answer = draw.choice(SEA)
    words.insert(draw.randrange(len(words)), answer)
    context = " ".join(words)
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": draw.choice(FILLER_WORDS), "context": context, "answers": answers}


def echo(draw: random.Random) -> Row:
    """Draw a row of a generation task: a word that names the text's subject."""
    good = draw.random() < 0.5
    text = " ".join(draw.choices(GOOD if good else BAD, k=3))
    return {"text": text, "target": " sugar" if good else " lemon lime", "label": "good" if good else "bad"}


KINDS: dict[str, tuple[Callable[[random.Random], Row], dict[str, Any]]] = {
    "warmth": (warmth, {"kind": "regression", "text": "text", "label": "score"}),
    "passage": (passage, {"kind": "span", "text": ["question", "context"], "answers": "answers"}),
    "echo": (echo, {"kind": "generation", "text": "text", "target": "target", "metric": "exact_match"}),
    "cloze": (echo, {"text": "text", "label": "label", "template": TEMPLATE}),
    "mood": (echo, {"text": "text", "label": "label"}),
}


def write_kinds(folder: Path, *tasks: str, changes: Row | None = None, **keys: Any) -> Stream:
    """Write and read a stream of these tasks; `changes` holds keys of all of them."""
    entries = []
    for task in tasks:
        make, entry = KINDS[task]
        files = {}
        for split, n in {"train": 60, "validation": 20, "test": 20}.items():
            draw = random.Random(f"{task}/{split}")
            files[split] = f"{task}.{split}.jsonl"
            (folder / files[split]).write_text("".join(json.dumps(make(draw)) + "\n" for _ in range(n)))
        entries.append({"name": task, "source": {"path": "json", "data_files": files}} | entry | (changes or {}))
    content = {"name": "kinds", "method": {"name": "lora", "rank": 4}, "budget": BUDGET, "tasks": entries} | keys
    (folder / "kinds.yaml").write_text(yaml.safe_dump(content))
    return read_stream(folder / "kinds.yaml")


def open_home(backbone: Path, home: Path) -> Learner:
    places = resolve_locations(home, {})
    registry = Registry.open(places.registry, places.blobs)
    return Learner.open(str(backbone), registry, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a family's tiny backbone."""

    def save(kind: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"backbone-{kind}"
        if not folder.exists():
            save_backbone(backbone_of(kind), folder)
        return folder

    return save


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT with its masked language modelling head."""
    folder, tokenizer = tmp_path_factory.mktemp("masked"), word_pieces()
    base, _ = tiny_model("bert")
    model = transformers.BertForMaskedLM(base.config)
    model.bert.load_state_dict(base.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(learner: Learner, stream: Stream) -> dict[str, float]:
    """Learn a stream and check that it is complete; the score of each task."""
    assert learner.run(stream) == {}
    report = learner.report(stream.name)
    assert report["oracle"]["forgetting"] in (0.0, None)
    assert all(value is not None for t, row in enumerate(report["routed"]["matrix"]) for value in row[: t + 1])
    assert find_damage(learner.registry) == []
    for audited in audit_stream(learner.backbone, learner.registry, stream):
        assert audited.identical
        assert audited.before == audited.now
    return {task["task"]: task["score"] for task in report["per_task"]}


def stored(learner: Learner, name: str) -> tuple[Delta, list[str]]:
    """Return a delta, and its labels in the registry."""
    record = learner.registry.delta(name)
    return load_delta(learner.registry.blobs.get(require_digest(record.digest, name))), list(record.labels)


def share_of_right(learner: Learner, task: str) -> float:
    """Return the share of a task's test rows that are not listed as answered wrongly."""
    result = find_wrong_answers(learner.backbone, learner.registry, task)
    assert all(row.answer not in ((row.label,) if isinstance(row.label, str) else row.label) for row in result.wrong)
    return 1 - len(result.wrong) / result.rows


def test_an_encoder_learns_labels_numbers_and_spans(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with open_home(folders("bert"), tmp_path / "home") as learner:
        scores = run(learner, write_kinds(tmp_path, "mood", "warmth", "passage", measure_gain=True))
        assert all(score > 0.8 for score in scores.values()), scores
        assert learner.report("kinds")["routed"]["routing_accuracy"] > 0.5
        for name in ("warmth@1", "passage@1"):
            delta, labels = stored(learner, name)
            assert delta.head is not None
            assert labels == []

        assert share_of_right(learner, "mood") == pytest.approx(scores["mood"])
        assert share_of_right(learner, "passage") <= scores["passage"], "of exact matches, and the score is F1"
        with pytest.raises(WrongKind, match="more or less close"):
            find_wrong_answers(learner.backbone, learner.registry, "warmth")
        (cold, warm) = learner.predict(["awful dull broken hate", "lovely superb bright enjoy"], task="warmth")
        assert isinstance(cold.label, float)
        assert isinstance(warm.label, float)
        assert cold.label < 350 < 650 < warm.label
        assert cold.score is None
        far = " ".join(["purr"] * 40 + ["coral"] + ["meow"] * 40)
        (quoted,) = learner.predict([("the", far)], task="passage")
        assert quoted.label == "coral"
        assert quoted.score is not None
        assert 0 < quoted.score <= 1
        (empty,) = learner.predict(["no passage here"], task="passage")
        assert empty.label == ""
        routed = learner.predict(["lovely superb", ("the", far)], false_abstentions=0)
        assert {p.task for p in routed} <= {"mood", "warmth", "passage"}


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_language_model_learns_generation(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    with open_home(folders(kind), tmp_path / "home") as learner:
        stream = write_kinds(tmp_path, "mood", "echo", "warmth", budget=BUDGET | {"epochs": 20})
        scores = run(learner, stream)
        assert scores["echo"] > 0.8
        assert share_of_right(learner, "echo") == pytest.approx(scores["echo"])
        assert scores["mood"] > 0.8
        delta, labels = stored(learner, "echo@1")
        assert (delta.head, labels) == (None, [])
        decoders = [name for name in delta.values if name.startswith("decoder.")]
        assert bool(decoders) == (kind == "t5"), "edits of a decoder belong to what is written"
        predictions = learner.predict(["lovely bright superb", "awful dull broken"], task="echo")
        assert [p.label for p in predictions] == ["sugar", "lemon lime"]
        assert all(p.score is not None and 0 < p.score <= 1 for p in predictions)


@pytest.mark.parametrize("kind", ["masked", "gpt2", "t5"])
def test_a_template_needs_no_head_and_few_rows(
    kind: str, folders: Callable[[str], Path], masked_folder: Path, tmp_path: Path
) -> None:
    folder = masked_folder if kind == "masked" else folders(kind)
    with open_home(folder, tmp_path / "home") as learner:
        stream = write_kinds(tmp_path, "cloze", budget=BUDGET | {"epochs": 0})
        zero = run(learner, stream)["cloze"]
        report = learner.report("kinds")["per_task"][0]
        assert report["score"] == report["frozen_score"] == zero, "nothing was learned"
        assert sum(entry["correct"] for entry in report["per_class"]) == round(20 * zero)
        assert share_of_right(learner, "cloze") == pytest.approx(zero)
        delta, labels = stored(learner, "cloze@1")
        assert (delta.head, labels) == (None, ["bad", "good"])
        few = write_kinds(
            tmp_path, "cloze", changes={"name": "few", "shots": 8}, name="few", budget=BUDGET | {"epochs": 20}
        )
        assert run(learner, few)["few"] > max(zero, 0.8)
        predictions = learner.predict(["lovely bright superb", "awful dull broken"], task="few")
        assert [p.label for p in predictions] == ["good", "bad"]
        assert all(p.score is not None and 0.5 <= p.score <= 1 for p in predictions)


def test_learning_again_is_the_same_to_the_bit(folders: Callable[[str], Path], tmp_path: Path) -> None:
    stream = write_kinds(tmp_path, "echo", "cloze", budget=BUDGET | {"epochs": 1})
    digests = []
    for home in ("one", "two"):
        with open_home(folders("t5"), tmp_path / home) as learner:
            assert learner.run(stream) == {}
            digests.append([learner.registry.delta(name).digest for name in ("echo@1", "cloze@1")])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("echo", r"task 'echo': generation needs a backbone that writes text, and .* is an encoder, which only reads; "
                 r"give a causal or an encoder-decoder one with --backbone, such as gpt2 or t5-small"),
        ("cloze", r"task 'cloze': a template needs a backbone with a language modelling head, and the files of .* have "
                  r"none; drop `template`, or use"),
    ],
)  # fmt: skip
def test_a_kind_that_a_backbone_lacks_is_refused_before_training(
    task: str, message: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    with open_home(folders("bert"), tmp_path / "home") as learner:
        with pytest.raises(InputError, match=message):
            learner.run(write_kinds(tmp_path, "mood", task))
        assert learner.registry.deltas() == []


def test_routing_statistics_do_not_depend_on_the_template(masked_folder: Path, tmp_path: Path) -> None:
    """Routing statistics of the same rows with and without a template are equal to the bit."""
    with open_home(masked_folder, tmp_path / "home") as learner:
        run(learner, write_kinds(tmp_path, "cloze", budget=BUDGET | {"epochs": 0}))
        plain = {"name": "plain", "template": None}
        run(learner, write_kinds(tmp_path, "cloze", changes=plain, name="plain", budget=BUDGET | {"epochs": 0}))
        result = [
            RoutingStatistics.from_bytes(learner.registry.blobs.get(learner.registry.signature(delta).routing or ""))
            for delta in ("cloze@1", "plain@1")
        ]
    assert torch.equal(result[0].means, result[1].means)
    assert torch.equal(result[0].factor, result[1].factor)
    assert torch.equal(result[0].held_out.random_features, result[1].held_out.random_features)


def test_a_template_that_does_not_suit_the_backbone_is_refused(masked_folder: Path, tmp_path: Path) -> None:
    rare = {"text": TEMPLATE["text"], "words": {"bad": "terrible", "good": "superb"}}
    long = {"text": "the " * 40 + "{{ mask }}", "words": TEMPLATE["words"]}
    with open_home(masked_folder, tmp_path / "home") as learner:
        with pytest.raises(InputError, match=r"template.words: 'terrible' is \d tokens of .*t, ##e, .*one token"):
            learner.run(write_kinds(tmp_path, "cloze", changes={"template": rare}))
        with pytest.raises(InputError, match=r"template.text: alone it is \d+ tokens, of 36 that are read; shorten it"):
            learner.run(write_kinds(tmp_path, "cloze", changes={"template": long}))


def test_a_task_keeps_its_kind(folders: Callable[[str], Path], tmp_path: Path) -> None:
    with open_home(folders("t5"), tmp_path / "home") as learner:
        run(learner, write_kinds(tmp_path, "echo", budget=BUDGET | {"epochs": 0}))
        other_kind = {"kind": "classification", "label": "label", "target": None, "metric": "accuracy"}
        with pytest.raises(InputError, match="kind 'generation' became 'classification'"):
            learner.run(write_kinds(tmp_path, "echo", changes=other_kind).model_copy(update={"name": "others"}))


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_every_kind_can_be_estimated(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    with open_home(folders(kind), tmp_path / "home") as learner:
        stream = write_kinds(tmp_path, *KINDS)
        estimates = {
            estimate.task: estimate for estimate in estimate_stream(learner.backbone, learner.registry, stream)
        }
        assert all(estimate.seconds > 0 and estimate.parameters > 0 for estimate in estimates.values())
        assert estimates["echo"].labels == estimates["warmth"].labels == 0
        assert (estimates["echo"].parameters > estimates["mood"].parameters) == (kind == "t5")


def test_the_fingerprint_does_not_cover_a_masked_head(masked_folder: Path) -> None:
    from continual.backbones.backbone import load_backbone

    masked = load_backbone(str(masked_folder), device="cpu", dtype="float32")
    plain = freeze(*tiny_model("bert"), name="plain", device="cpu", dtype="float32")
    assert masked.fingerprint == plain.fingerprint
    assert masked.parameter_count == plain.parameter_count
    assert masked.language_model is not None
    assert plain.language_model is None
    assert masked.longest_input == POSITIONS
