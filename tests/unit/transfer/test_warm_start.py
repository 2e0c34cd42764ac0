"""Deltas whose values a new delta may start from."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from continual.backbones.backbone import Backbone
from continual.deltas import METHODS, Delta, attached, can_warm_start_from, finalize
from continual.kinds import ForwardContext
from continual.kinds.classification import Classification
from continual.transfer.warm_start import Neighbour, choose_start, evaluate_candidate, from_scratch, initial_delta
from tests.helpers.tiny_tasks import fresh_delta, labels_of, prepared_rows

# Methods whose training replaces their values by others, which cannot be trained the same way again.
REPLACED = {"diff_pruning", "masking", "subspace"}


def finalized(backbone: Backbone, method: str, **settings: Any) -> Delta:
    """Return a delta as it is stored after training."""
    delta = fresh_delta(backbone, method, **settings)
    return finalize(backbone, delta, stage=delta.settings.stages - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_is_copied_where_its_values_are_trainable(bert: Backbone, method: str) -> None:
    delta = finalized(bert, method)
    assert can_warm_start_from(bert, delta, delta.settings) == (method not in REPLACED)


def test_a_plain_prefix_is_a_start_and_a_reparameterised_one_not(bert: Backbone) -> None:
    plain, network = finalized(bert, "prefix"), finalized(bert, "prefix", reparameterise=8)
    assert can_warm_start_from(bert, plain, plain.settings)
    assert not can_warm_start_from(bert, network, network.settings)
    assert not can_warm_start_from(bert, network, plain.settings), "other settings"


@pytest.mark.parametrize("method", ["lora", "masking"])
@pytest.mark.parametrize("kind", ["nearest", "auto"])
def test_only_copyable_neighbours_are_chosen(bert: Backbone, kind: str, method: str) -> None:
    delta, rows = finalized(bert, method), prepared_rows(bert, "mood", 12)
    task, context = Classification(labels_of("mood")), ForwardContext(bert, None, rows)
    begin = task.closed_form_start(context, context)
    worse = from_scratch(replace(begin, held_out_quality=torch.zeros_like(begin.held_out_quality)))
    foreign = replace(
        evaluate_candidate(task, (Neighbour("x@1", delta), 1.0), delta=delta, rows=context, held_out=context),
        start=begin,
    )
    chosen = choose_start(
        bert,
        kind,
        scratch=worse,
        candidates=[foreign],
        settings=delta.settings,
        trial_score=lambda start: float(start is foreign),
    )
    assert (chosen is foreign) == (method == "lora")
    start = initial_delta(bert, task, chosen, method=method, settings=delta.settings, seed=0)
    with attached(bert, start.trainable(bert.device)):
        pass
