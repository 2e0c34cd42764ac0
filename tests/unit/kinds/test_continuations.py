"""Continuations that share their prompt have the log probabilities that each has when it is read by itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Bank, attached
from continual.features.tokens import reserve_tokens
from continual.kinds.continuations import (
    Branches,
    continuation_log_probs,
    forward_log_probs,
    sequence_ids,
)
from continual.kinds.language_model import language_model_obstacle
from tests.conftest import backbone_of
from tests.helpers.tiny_models import TINY_CONFIGS, WRITERS
from tests.helpers.tiny_tasks import perturbed_delta

CAUSAL = tuple(kind for kind in WRITERS if TINY_CONFIGS[kind][1].endswith(("ForCausalLM", "LMHeadModel")))
FAMILIES = tuple(kind for kind in CAUSAL if language_model_obstacle(backbone_of(kind), what="it") is None)
PROMPTS = ((11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21), (31, 32, 33), (41,))
ENDINGS = {
    "one token": ((5,), (6,), (7,)),
    "one within another": ((5,), (6, 7), (6, 8), (6, 7, 9)),
    "a common tail": ((5, 9), (6, 9), (7, 8, 9)),
}


def items_of(endings: str) -> list[Branches]:
    return [(prompt, ENDINGS[endings]) for prompt in PROMPTS]


def alone(backbone: Backbone, items: Sequence[Branches]) -> Tensor:
    """Read each prompt with each continuation by itself."""
    scores = []
    for prompt, continuations in items:
        for ending in continuations:
            logits = backbone.language_model(torch.tensor([[*prompt, *ending]]), use_cache=False).logits
            states = logits[0, len(prompt) - 1 : -1]
            scores.append(F.log_softmax(states, dim=1)[range(len(ending)), ending].sum())
    return torch.stack(scores).reshape(len(items), -1)


@pytest.mark.parametrize("endings", ENDINGS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_they_are_those_of_each_alone(name: str, endings: str) -> None:
    backbone, items = replace(backbone_of(name), generates=True), items_of(endings)
    expected = alone(backbone, items)
    torch.testing.assert_close(continuation_log_probs(backbone, items), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.tensor(forward_log_probs(backbone, items)), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
@torch.no_grad()
def test_they_are_those_of_each_alone_under_any_delta(name: str, method: str) -> None:
    backbone, items = replace(backbone_of(name), generates=True), items_of("a common tail")
    delta = perturbed_delta(backbone, method)
    backbone = reserve_tokens(backbone, delta.settings)
    with attached(backbone, delta):
        expected = alone(backbone, items)
        torch.testing.assert_close(continuation_log_probs(backbone, items), expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.tensor(forward_log_probs(backbone, items)), expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_the_prompts_of_a_mixed_batch_have_deltas_of_their_own() -> None:
    backbone = replace(backbone_of("llama"), generates=True)
    deltas = {
        "lora": perturbed_delta(backbone, "lora"),
        "prompt": perturbed_delta(backbone, "prompt", length=3),
        "prefix": perturbed_delta(backbone, "prefix", length=2),
    }
    whole = reserve_tokens(backbone, *(delta.settings for delta in deltas.values()))
    items = [(prompt, ENDINGS[endings]) for prompt, endings in zip(PROMPTS, ENDINGS, strict=True)]
    bank = Bank(whole, slots=4)
    for key, delta in deltas.items():
        bank.put(key, delta)
    order, mixture = bank.mixed_batch([*deltas])
    with attached(whole, mixture):
        together = forward_log_probs(whole, [items[row] for row in order])
    for row, scores in zip(order, together, strict=True):
        with attached(whole, [*deltas.values()][row]):
            expected = alone(whole, [items[row]])[0]
        torch.testing.assert_close(torch.tensor(scores), expected, rtol=0, atol=1e-3)


def test_gradients_are_those_of_each_alone() -> None:
    backbone, items = replace(backbone_of("llama"), generates=True), items_of("a common tail")

    def gradients(compute: Any) -> list[Tensor]:
        delta = perturbed_delta(backbone, "lora").trainable(torch.device("cpu"))
        with attached(backbone, delta):
            compute(backbone, items).logsumexp(dim=1).sum().backward()
        return [value.grad for value in delta.values.values() if value.grad is not None]

    torch.testing.assert_close(gradients(continuation_log_probs), gradients(alone), rtol=1e-3, atol=1e-4)


def test_a_sequence_is_read_once_for_all_that_begin_with_it() -> None:
    assert sequence_ids([((1, 2), ((5,), (6,)))]) == ((1, 2),)
    assert sequence_ids([((1, 2), ((5,), (6, 7), (6, 7, 9)))]) == ((1, 2, 6, 7),)
    assert sequence_ids([((1, 2), ((5, 9), (6, 9)))]) == ((1, 2, 5), (1, 2, 6))
