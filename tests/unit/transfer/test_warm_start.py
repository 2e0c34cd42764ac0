"""Whose values a new delta may begin with."""

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


def kept(backbone: Backbone, method: str, **settings: Any) -> Delta:
    """A delta as it is kept once its training is over."""
    delta = fresh_delta(backbone, method, **settings)
    return finalize(backbone, delta, stage=delta.settings.stages - 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_is_copied_where_its_values_are_those_that_training_begins_with(bert: Backbone, method: str) -> None:
    delta = kept(bert, method)
    assert can_warm_start_from(bert, delta, delta.settings) == (method not in REPLACED)


def test_a_reparameterised_prefix_is_no_start_but_a_plain_one_is(bert: Backbone) -> None:
    plain, network = kept(bert, "prefix"), kept(bert, "prefix", reparameterise=8)
    assert can_warm_start_from(bert, plain, plain.settings)
    assert not can_warm_start_from(bert, network, network.settings)
    assert not can_warm_start_from(bert, network, plain.settings), "other settings"


@pytest.mark.parametrize("method", ["lora", "masking"])
@pytest.mark.parametrize("kind", ["nearest", "auto"])
def test_only_copyable_neighbours_are_chosen(bert: Backbone, kind: str, method: str) -> None:
    delta, rows = kept(bert, method), prepared_rows(bert, "mood", 12)
    task, seen = Classification(labels_of("mood")), ForwardContext(bert, None, rows)
    begin = task.closed_form_start(seen, seen)
    worse = from_scratch(replace(begin, held_out_quality=torch.zeros_like(begin.held_out_quality)))
    other = replace(
        evaluate_candidate(task, (Neighbour("x@1", delta), 1.0), delta=delta, rows=seen, held_out=seen), start=begin
    )
    chosen = choose_start(
        bert,
        kind,
        scratch=worse,
        candidates=[other],
        settings=delta.settings,
        trial_score=lambda start: float(start is other),
    )
    assert (chosen is other) == (method == "lora")
    start = initial_delta(bert, task, chosen, method=method, settings=delta.settings, seed=0)
    with attached(bert, start.trainable(bert.device)):
        pass
