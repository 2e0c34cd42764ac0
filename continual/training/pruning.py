"""Pruning during training: forms with a budget set the least important of all places' values to zero."""

from collections.abc import Mapping

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, iterate_edits
from continual.deltas.protocols import Budgeted, Values
from continual.deltas.values import values_of

PRUNING = "pruning/"  # before the keys of its state among an optimizer's


class BudgetedPruning:
    """The budgets of a delta's forms, with the statistics of their values; places of equal forms share a budget.

    Args:
        backbone: The delta's backbone.
        delta: The delta, with the values that are trained.
        stage: The stage of training.
        state: `state_tensors`, among others, of an earlier training that this one continues.
    """

    def __init__(self, backbone: Backbone, delta: Delta, *, stage: int, state: Mapping[str, Tensor]) -> None:
        self._values: dict[Budgeted, dict[str, Values]] = {}
        for _, prefix, edit in iterate_edits(backbone, delta.settings, stage=delta.stage):
            if isinstance(edit.form, Budgeted) and edit.form.has_budget and stage in edit.stages:
                self._values.setdefault(edit.form, {})[prefix] = values_of(delta.values, prefix)
        self._statistics: dict[str, dict[str, Tensor]] = {}
        for form, places in self._values.items():
            for prefix, values in places.items():
                fresh = form.init_statistics(values)
                self._statistics[prefix] = {
                    name: state.get(f"{PRUNING}{prefix}/{name}", tensor).to(tensor.device, copy=True)
                    for name, tensor in fresh.items()
                }

    @torch.no_grad()
    def observe(self) -> None:
        """Update the statistics by the values and their gradients, before a step."""
        for form, places in self._values.items():
            for prefix, values in places.items():
                form.observe(values, self._statistics[prefix])

    @torch.no_grad()
    def prune(self, *, step: int, steps: int) -> None:
        """Set values to zero in place, behind a step.

        Args:
            step: Steps taken so far, this one included.
            steps: Steps in all.
        """
        for form, places in self._values.items():
            form.prune(
                [(values, self._statistics[prefix]) for prefix, values in places.items()], step=step, steps=steps
            )

    @property
    def state_tensors(self) -> dict[str, Tensor]:
        """The statistics by `pruning/place/number of the edit/name`; not copied, so the next step changes them."""
        return {
            f"{PRUNING}{prefix}/{name}": tensor
            for prefix, statistics in self._statistics.items()
            for name, tensor in statistics.items()
        }
