"""Answers of the engine, and of transformers' own `generate` on one row with a delta attached."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, attached
from continual.generation.engine import Engine
from continual.generation.prompts import EngineLimits, Generated, Prompt
from continual.generation.sampling import Ids, SamplingSettings
from continual.kinds.writing import make_prompts


def prompt_ids(backbone: Backbone, texts: Sequence[str]) -> list[Ids]:
    return [tuple(ids) for ids in backbone.tokenizer(list(texts))["input_ids"]]


def engine_of(backbone: Backbone, delta: Delta | None, *, limits: EngineLimits | None = None) -> Engine:
    """Return an engine that answers every prompt through one delta."""
    return Engine(backbone, lambda names: (range(len(names)), delta), limits=limits)


def finish(engine: Engine) -> dict[object, Generated]:
    """Step until all rows are written; the answers by key."""
    answers = {}
    while len(engine):
        for progress in engine.step():
            if progress.error is not None:
                raise progress.error
            if progress.generated is not None:
                answers[progress.key] = progress.generated
    engine.pause()
    return answers


def write(
    backbone: Backbone,
    delta: Delta | None,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    limits: EngineLimits | None = None,
) -> list[Ids]:
    """Return the engine's greedy answers to prompts through one delta."""
    engine = engine_of(backbone, delta, limits=limits)
    for number, prompt in enumerate(make_prompts(backbone, delta, prompts, SamplingSettings(max_new_tokens))):
        engine.add(number, prompt)
    answers = finish(engine)
    return [answers[number].ids for number in range(len(prompts))]


def write_prompts(engine: Engine, prompts: Sequence[Prompt]) -> list[Generated]:
    """Return the answers to prompts that are added at once."""
    for number, prompt in enumerate(prompts):
        engine.add(number, prompt)
    answers = finish(engine)
    return [answers[number] for number in range(len(prompts))]


def reference(backbone: Backbone, delta: Delta | None, prompt: Ids, *, max_new_tokens: int, cache: bool = True) -> Ids:
    """Return the greedy answer of transformers to one prompt."""
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=cache,
        eos_token_id=backbone.tokenizer.eos_token_id,
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    ids = torch.tensor([prompt], device=backbone.device)
    with attached(backbone, delta), backbone.autocast():
        row = backbone.language_model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy
        )[0].tolist()
    return tuple(row[len(prompt) if backbone.architecture == "causal" else 1 :])
