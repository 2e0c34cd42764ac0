"""Tiny random backbones and separable texts: a test learns a task in about a second."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone, freeze
from continual.deltas import METHODS, Delta, Edit, Head, MethodSettings, init_values
from continual.deltas.values import iterate_edits
from continual.errors import MethodError
from continual.features.pooling import encode
from continual.features.tokens import Tokens
from continual.kinds import kind_of_delta
from continual.kinds.classification import Classification, ClassificationRows
from continual.training.objective import training_objective
from continual.training.training_run import TrainingRun
from tasks import Budget, LabelledTexts, Text
from tests.helpers.tiny_models import FILLER_WORDS, WORDS, tiny_chat_model, tiny_model


def text_of(task: str, label: str, draw: random.Random) -> str:
    """Draw a text of three to seven words, at least two of them the label's."""
    label_words = WORDS[task][label].split()
    chosen = [draw.choice(label_words) for _ in range(draw.randint(2, 4))] + draw.choices(
        FILLER_WORDS, k=draw.randint(1, 3)
    )
    draw.shuffle(chosen)
    return " ".join(chosen)


def rows_of(task: str, n: int, *, seed: int = 0) -> LabelledTexts:
    """Draw `n` rows whose labels take turns."""
    draw, labels = random.Random(f"{task}/{seed}"), tuple(WORDS[task])
    turns = tuple(labels[i % len(labels)] for i in range(n))
    return LabelledTexts(tuple(text_of(task, label, draw) for label in turns), turns)


def labels_of(task: str) -> tuple[str, ...]:
    return tuple(sorted(WORDS[task]))


def prepared_rows(backbone: Backbone, task: str, n: int, *, seed: int = 0) -> ClassificationRows:
    """Draw `n` rows of a task, tokenized for a backbone."""
    return Classification(labels_of(task)).prepare(backbone, rows_of(task, n, seed=seed), max_length=32)


def mood_run(backbone: Backbone, start: Delta, *, epochs: int) -> TrainingRun[list[int]]:
    """Return a training of a delta on twelve rows of `mood`, in batches of four."""
    objective = training_objective(
        backbone,
        kind_of_delta(start),
        prepared_rows(backbone, "mood", 12),
        validation=prepared_rows(backbone, "mood", 6, seed=1),
        budget=Budget(epochs=epochs, batch_size=4),
        metric="accuracy",
        seed=3,
    )
    return TrainingRun(backbone, start, objective, learning_rate=1e-2, seed=3)


def write_task(folder: Path, task: str, *, train: int = 60, validation: int = 20, test: int = 12) -> dict[str, Any]:
    """Write a task's rows as JSON lines; its entry of a stream file."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    files = {}
    for seed, (split, n) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        rows = rows_of(task, n, seed=seed)
        write_rows(folder / task / f"{split}.jsonl", rows.texts, rows.labels)
        files[split] = f"{task}/{split}.jsonl"
    return {"name": task, "source": {"path": "json", "data_files": files}, "text": "text", "label": "label"}


def write_rows(path: Path, texts: Sequence[Text], labels: Sequence[str]) -> None:
    lines = (json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def tiny_backbone(kind: str, *, seed: int = 0, **changes: Any) -> Backbone:
    """Return a random backbone of a family, with changes of its configuration."""
    model, tokenizer = tiny_model(kind, seed=seed, **changes)
    return freeze(model, tokenizer, name=f"tiny-{kind}", device="cpu", dtype="float32")


def tiny_chat_backbone(*, seed: int = 0) -> Backbone:
    """Return a random causal backbone whose tokenizer has a chat template."""
    model, tokenizer = tiny_chat_model(seed=seed)
    return freeze(model, tokenizer, name="tiny-chat", device="cpu", dtype="float32")


def save_backbone(backbone: Backbone, folder: Path) -> Path:
    """Save a backbone in a folder that `load_backbone` reads."""
    backbone.base_module.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


# Settings that a method cannot do without, at all or with matrices as small as here.
REQUIRED_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "union": {"parts": ["bitfit", {"name": "lora", "rank": 2}]},
    "sequential": {"parts": [{"name": "lora", "rank": 2}, "bitfit"]},
    "fourier_ft": {"scale": 5.0},  # divided by the number of a matrix's entries
}


# Settings of a method without which PEFT has no equal.
PEFT_SETTINGS: Mapping[str, Mapping[str, Any]] = {"prefix": {"shift_positions": True}}


def fresh_delta(backbone: Backbone, method: str, *, task: str = "mood", seed: int = 0, **settings: Any) -> Delta:
    """Return an untrained delta with a random head; skip the test where the family lacks sites for a stated reason."""
    chosen = METHODS[method].model_validate({**REQUIRED_SETTINGS.get(method, {}), **settings})
    return _fresh(backbone, method, chosen, labels_of(task), seed=seed)


class AdHocMethod(MethodSettings):
    """A method whose edits a test chooses."""

    chosen: Any

    def edits(self) -> tuple[Edit, ...]:
        edits: tuple[Edit, ...] = self.chosen
        return edits


def delta_of_edits(backbone: Backbone, *edits: Edit, seed: int = 0) -> Delta:
    """Return an untrained delta of these edits."""
    return _fresh(backbone, "trial", AdHocMethod(chosen=edits), labels_of("mood"), seed=seed)


# Ends of the names of modules that no site reaches: experts as fused tensors and what chooses among them, the state of
# linear attention, and a table that is read without a call.
UNREACHED: Mapping[str, tuple[str, ...]] = {
    "qwen3_moe": ("mlp.gate", "mlp.experts"),
    "llama4": ("feed_forward.router", "feed_forward.experts"),
    "qwen3_5": ("linear_attn", "linear_attn.conv1d", "linear_attn.norm"),
    "deberta-v2": ("encoder.rel_embeddings", "encoder.LayerNorm"),
}


def is_unreached(backbone: Backbone, module: str) -> bool:
    """Return whether no site of the family reaches a module with this name."""
    return any(module.endswith(end) for end in UNREACHED.get(backbone.name.removeprefix("tiny-"), ()))


def obstacle(backbone: Backbone, settings: MethodSettings) -> str | None:
    """Return the stated reason why the family lacks a site of the method, or None."""
    try:
        list(iterate_edits(backbone, settings))
    except MethodError as error:
        if any(reason in str(error) for reason in backbone.family.absent.values()):
            return str(error)
        raise
    return None


def supported_methods(backbone: Backbone) -> list[str]:
    """Return the methods all of whose sites the family has."""
    return [
        name
        for name, method in METHODS.items()
        if not obstacle(backbone, method.model_validate(REQUIRED_SETTINGS.get(name, {})))
    ]


def _fresh(backbone: Backbone, method: str, settings: MethodSettings, labels: tuple[str, ...], *, seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    head = Head(
        0.1 * torch.randn(len(labels), backbone.hidden_size, generator=generator),
        0.1 * torch.randn(len(labels), generator=generator),
        labels,
        backbone.pooling,
    )
    if reason := obstacle(backbone, settings):
        pytest.skip(reason)
    values = init_values(backbone, settings, seed=seed)
    return Delta(method, settings, backbone.fingerprint, values, head, stage=0).at_stage(0)


def perturbed_delta(backbone: Backbone, method: str, *, seed: int = 0, **settings: Any) -> Delta:
    """Return a delta whose every value differs from its initial one, as after training."""
    delta = fresh_delta(backbone, method, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed + 1)
    values = {key: value + 0.3 * torch.randn(value.shape, generator=generator) for key, value in delta.values.items()}
    return replace(delta, values=values, stage=None)


def head_of(delta: Delta) -> Head:
    """Return the head of a delta that has one."""
    assert delta.head is not None
    return delta.head


@torch.inference_mode()
def logits(backbone: Backbone, delta: Delta, tokens: Tokens) -> Tensor:
    """Compute the logits [N, C] of a delta's head for each text."""
    return head_of(delta)(encode(backbone, tokens, delta=delta))
