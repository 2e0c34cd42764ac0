"""Mixed batches: for every method on the families, each row gets the output of its own delta."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Bank, Delta, MixedBatch, attached
from continual.errors import DeltaError
from continual.features.tokens import pad, tokenize
from continual.generation.engine import Engine
from continual.generation.prompts import EngineLimits
from continual.generation.sampling import SamplingSettings
from continual.kinds.writing import make_prompts
from tests.helpers.method_pairs import every_method
from tests.helpers.tiny_tasks import perturbed_delta, supported_methods, tiny_backbone
from tests.helpers.writing import reference, write_prompts

TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave", "lemon one", "beak of the sea", "one"]
NAMES = ["second", "first", None, "low", "first", "tokens"]
WRITERS = (("gpt2", "t5"), ("llama", "bart"))  # a decoder and an encoder with a decoder for each method, in turn
# Families where some module computes what all rows of a batch have in common, such as the bias of distances.
COMMON = {"t5", "mt5", "mpnet", "deberta-v2"}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def deltas_of(backbone: Backbone, method: str) -> dict[str, Delta]:
    """Return two deltas of a method and others that change a batch: one of another rank, one that adds tokens."""
    first = perturbed_delta(backbone, method)
    if not Bank.can_batch(backbone, first):
        assert backbone.family.name in COMMON
        pytest.skip(f"{method} changes what all rows of a {backbone.family.name} batch have in common")
    sites: dict[str, Any] = {"sites": ("ffn.in",)} if backbone.family.name == "deberta-v2" else {}
    return {
        "first": first,
        "second": perturbed_delta(backbone, method, seed=1),
        "low": perturbed_delta(backbone, "lora", rank=3, **sites),
        "tokens": perturbed_delta(backbone, "prompt", length=3),
    }


def bank_of(backbone: Backbone, deltas: dict[str, Delta], *, slots: int = 8) -> Bank:
    bank = Bank(backbone, slots=slots)
    for name, delta in deltas.items():
        bank.put(name, delta)
    return bank


@torch.no_grad()
def states(backbone: Backbone, delta: Delta | MixedBatch | None, rows: Sequence[int]) -> Tensor:
    """Compute the hidden states [B, T, D] of the texts, zero at padding."""
    batch = pad(backbone, tokenize(backbone, TEXTS, max_length=24), rows)
    with attached(backbone, delta):
        hidden = backbone.hidden_states(batch)
    return hidden * batch["attention_mask"].unsqueeze(-1)


@every_method
def test_every_row_goes_through_its_own_delta(backbone: Backbone, method: str) -> None:
    deltas = deltas_of(backbone, method)
    order, mixture = bank_of(backbone, deltas).mixed_batch(NAMES)
    hidden = states(backbone, mixture, order)
    for place, row in enumerate(order):
        alone = states(backbone, deltas.get(str(NAMES[row])), range(len(TEXTS)))[row]
        torch.testing.assert_close(hidden[place], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "settings"), [("vera", {"rank": 5, "projections": "stored"}), ("oft", {"series": 4, "block_size": 4})]
)
def test_the_forms_of_pefts_adapters_can_be_mixed(method: str, settings: dict[str, Any]) -> None:
    backbone = tiny_backbone("gpt2")
    deltas = {name: perturbed_delta(backbone, method, seed=n, **settings) for n, name in enumerate(("first", "second"))}
    order, mixture = bank_of(backbone, deltas).mixed_batch(NAMES[:2])
    hidden = states(backbone, mixture, order)
    for place, row in enumerate(order):
        alone = states(backbone, deltas[str(NAMES[row])], range(2))[row]
        torch.testing.assert_close(hidden[place], alone, rtol=1e-4, atol=1e-4)


def test_all_methods_can_share_one_batch(backbone: Backbone) -> None:
    deltas = {name: perturbed_delta(backbone, name) for name in supported_methods(backbone)}
    deltas = {name: delta for name, delta in deltas.items() if Bank.can_batch(backbone, delta)}
    assert len(deltas) == len(supported_methods(backbone)) or backbone.family.name in COMMON
    names = list(deltas)
    rows = [number % len(TEXTS) for number in range(len(names))]
    order, mixture = bank_of(backbone, deltas, slots=len(names)).mixed_batch(names)
    hidden = states(backbone, mixture, [rows[i] for i in order])
    for place, number in enumerate(order):
        alone = states(backbone, deltas[names[number]], range(len(TEXTS)))[rows[number]]
        torch.testing.assert_close(hidden[place], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "method"), [(family, name) for number, name in enumerate(METHODS) for family in WRITERS[number % 2]]
)
def test_text_is_generated_by_each_rows_own_delta(family: str, method: str) -> None:
    """Rows join and leave a batch of at most three, and each gets what transformers writes for it alone."""
    writer = replace(tiny_backbone(family), generates=True)
    deltas, ids = deltas_of(writer, method), list(tokenize(writer, TEXTS, max_length=14).ids)
    bank = bank_of(writer, deltas)
    names, lengths = [*NAMES, *NAMES[:2]], range(2, 10)
    prompts = [
        replace(
            make_prompts(writer, deltas.get(str(name)), [ids[i % 6]], SamplingSettings(length))[0], delta=name or ""
        )
        for i, (name, length) in enumerate(zip(names, lengths, strict=True))
    ]
    engine = Engine(writer, lambda keys: bank.mixed_batch([key or None for key in keys]), limits=EngineLimits(rows=3))
    for i, (name, answer) in enumerate(zip(names, write_prompts(engine, prompts), strict=True)):
        expected = reference(writer, deltas.get(str(name)), ids[i % 6], max_new_tokens=lengths[i])
        assert answer.ids == expected


def test_an_edit_of_a_module_shared_by_all_rows_cannot_be_mixed() -> None:
    backbone = tiny_backbone("t5")
    with pytest.raises(DeltaError, match="'full' changes what all rows of a batch have in common"):
        Bank(backbone, slots=2).put("full", perturbed_delta(backbone, "full"))
