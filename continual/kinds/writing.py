"""Write the answers of forward requests with an engine, so that rows of several requests share it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, iterate_edits
from continual.features.forward import ForwardRequest, MixedBatchBuilder, NamedRequest, RowScheduler
from continual.generation.engine import Engine
from continual.generation.prompts import EngineLimits, Prompt
from continual.generation.sampling import Ids, SamplingSettings

MIN_JOINING = 8  # rows that wait for each other: nobody waits for a first token here


def soft_token_count(backbone: Backbone, delta: Delta | None) -> int:
    """Return how many vectors a delta puts before the tokens that a backbone which generates writes behind."""
    if delta is None:
        return 0
    stack = "tokens" if backbone.architecture == "causal" else "decoder.tokens"
    edits = iterate_edits(backbone, delta.settings, stage=delta.stage)
    return sum(edit.added_tokens for place, _, edit in edits if place.name == stack)


def make_prompts(
    backbone: Backbone,
    delta: Delta | None,
    prompts: Sequence[Ids],
    sampling: SamplingSettings,
    *,
    ends: tuple[int, ...] = (),
) -> list[Prompt]:
    """Return prompts that are answered through one delta.

    Args:
        backbone: A backbone that generates.
        delta: The delta; None for the plain backbone.
        prompts: Tokens of each prompt.
        sampling: How the answers are written.
        ends: Tokens that end an answer, beside those of the backbone.
    """
    soft_tokens = soft_token_count(backbone, delta)
    alone = delta is not None and not Bank.can_batch(backbone, delta)
    return [Prompt(ids, sampling, soft_tokens=soft_tokens, alone=alone, ends=ends) for ids in prompts]


def _write_rows(
    backbone: Backbone, requests: Sequence[NamedRequest], build_batch: MixedBatchBuilder, *, slots: int
) -> Iterator[tuple[ForwardRequest[Any], int, Any]]:
    """Yield request, row index and `Generated` of each row, whose item is a `Prompt`; the shortest prompts first."""
    limits = EngineLimits(deltas=slots, min_joining=MIN_JOINING)
    engine = Engine(backbone, build_batch, limits=limits)
    rows = [(name, request, row) for name, request in requests for row in range(len(request.items))]
    for name, request, row in sorted(rows, key=lambda entry: entry[1].lengths[entry[2]]):
        engine.add((request, row), replace(request.items[row], delta=name))
    try:
        while len(engine):
            for progress in engine.step():
                if progress.generated is not None:
                    request, row = progress.key
                    yield request, row, progress.generated
                elif progress.error is not None and not progress.is_left_out:
                    raise progress.error
    finally:
        engine.pause()


WRITE = RowScheduler(_write_rows)
"""Writes the answer to each `Prompt`; the result of a row is a `Generated`."""
