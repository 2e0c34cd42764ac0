"""Likelihoods of continuations, and the most probable ones, by language models."""

from dataclasses import replace

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.kinds.language_model import token_nll
from tests.conftest import backbone_of
from tests.helpers.tiny_models import SUITE_FAMILIES
from tests.helpers.tiny_tasks import perturbed_delta
from tests.helpers.writing import write

WRITERS = [kind for kind in SUITE_FAMILIES if backbone_of(kind).architecture != "encoder"]
TEXTS = ["purr meow", "the awful dull tower of sugar and honey", "wave"]
LONGEST = 9


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> Backbone:
    return replace(backbone_of(request.param), generates=True)


def ids_of(backbone: Backbone, texts: list[str]) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in backbone.tokenizer(texts)["input_ids"]]


def test_a_delta_changes_the_generated_text(writer: Backbone) -> None:
    prompts = ids_of(writer, TEXTS * 3)
    changed = write(writer, perturbed_delta(writer, "lora"), prompts, max_new_tokens=LONGEST)
    assert changed != write(writer, None, prompts, max_new_tokens=LONGEST)


def test_generation_is_greedy_step_by_step(writer: Backbone) -> None:
    (prompt,) = ids_of(writer, TEXTS[1:2])
    (generated,) = write(writer, None, [prompt], max_new_tokens=LONGEST)
    with torch.no_grad():
        for step, token in enumerate(generated[: LONGEST - 1]):  # BART has the end token forced at the last step
            alternatives = [(*generated[:step], alternative) for alternative in range(0, len(writer.tokenizer), 7)]
            chosen = token_nll(writer, [prompt], [(*generated[:step], token)])[0].sum()
            assert (token_nll(writer, [prompt] * len(alternatives), alternatives)[0].sum(dim=1) >= chosen - 1e-4).all()


def test_losses_equal_the_models(writer: Backbone) -> None:
    prompts, endings = ids_of(writer, TEXTS), ids_of(writer, ["bark fetch", "sail", "of the street"])
    with torch.no_grad():
        losses, counts = token_nll(writer, prompts, endings)
        for i, (prompt, ending) in enumerate(zip(prompts, endings, strict=True)):
            whole = prompt + ending if writer.architecture == "causal" else prompt
            labels = (-100,) * len(prompt) + ending if writer.architecture == "causal" else ending
            expected = writer.language_model(input_ids=torch.tensor([whole]), labels=torch.tensor([labels])).loss
            torch.testing.assert_close(losses[i].sum() / counts[i], expected, rtol=1e-4, atol=1e-5)
    assert counts.tolist() == [len(ending) for ending in endings]
