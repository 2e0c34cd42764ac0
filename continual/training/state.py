"""Where training stands after an epoch: all that the rest of it follows from, to the bit."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.deltas import Delta, delta_from_tensors

Metadata = dict[str, Any]


@dataclass(frozen=True)
class Epoch:
    """One point of the learning curve: number (0 is the start), mean training loss, validation score."""

    number: int
    loss: float | None
    score: float


@dataclass(frozen=True)
class ScoredDelta:
    """A delta as it would be kept, and its point of the curve."""

    delta: Delta
    epoch: Epoch

    def better_of(self, other: "ScoredDelta") -> "ScoredDelta":
        """The one of the higher score, of equals this one."""
        return other if other.epoch.score > self.epoch.score else self


@dataclass(frozen=True)
class TrainingState:
    """Where training stands. Its tensors are in use: who wants to keep it packs it before training goes on.

    stage, epochs: the stage being trained, and how many of its epochs are done · trained: the delta as it is now ·
    moments: the optimiser's · best, of_stage: the best points in all and of this stage, None before its first epoch ·
    seconds: in training steps · random: the state of what draws random numbers, by kind of device.
    """

    stage: int
    epochs: int
    current: Delta
    optimizer_state: Mapping[str, Tensor]
    curve: tuple[Epoch, ...]
    best: ScoredDelta
    best_of_stage: ScoredDelta | None
    seconds: float
    rng_state: Mapping[str, Tensor]

    def at_stage(self, stage: int) -> "TrainingState":
        """The beginning of a later stage, from the best epoch of this one; itself where this is the stage."""
        if stage == self.stage:
            return self
        best = self.best_of_stage.delta if self.best_of_stage else self.current
        return replace(self, stage=stage, epochs=0, current=best, optimizer_state={}, best_of_stage=None)


def get_rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of what draws random numbers, dropout's among them."""
    own = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **own}


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw what would have been drawn after `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def to_tensors(course: TrainingState) -> tuple[dict[str, Tensor], Metadata]:
    """A course as tensors in memory of their own, and JSON."""
    points = [point for point in (course.best, course.best_of_stage) if point]
    deltas = {"trained": course.current} | {f"point {point.epoch.number}": point.delta for point in points}
    named = {name: delta.tensors() for name, delta in deltas.items()}
    tensors = {f"{name}/{key}": value for name, values in named.items() for key, value in values.items()}
    tensors |= {f"moments/{key}": value for key, value in course.optimizer_state.items()}
    tensors |= {f"random/{key}": value for key, value in course.rng_state.items()}
    about = {
        "stage": course.stage,
        "epochs": course.epochs,
        "curve": [astuple(epoch) for epoch in course.curve],
        "best": course.best.epoch.number,
        "of_stage": course.best_of_stage and course.best_of_stage.epoch.number,
        "seconds": course.seconds,
        # The order of a file's tensors is not kept, and sums over them depend on it.
        "deltas": {name: {"about": delta.metadata(), "order": list(named[name])} for name, delta in deltas.items()},
        "moments": list(course.optimizer_state),
    }
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}, about


def from_tensors(tensors: Mapping[str, Tensor], about: Metadata) -> TrainingState:
    """The course that was packed. Raises KeyError, TypeError, ValueError or DeltaError for anything else."""
    curve = tuple(Epoch(*point) for point in about["curve"])

    def delta(name: str) -> Delta:
        stored = about["deltas"][name]
        return delta_from_tensors({key: tensors[f"{name}/{key}"] for key in stored["order"]}, stored["about"])

    def point(number: int) -> ScoredDelta:
        return ScoredDelta(delta(f"point {number}"), curve[number])

    return TrainingState(
        stage=about["stage"],
        epochs=about["epochs"],
        current=delta("trained"),
        optimizer_state={key: tensors[f"moments/{key}"] for key in about["moments"]},
        curve=curve,
        best=point(about["best"]),
        best_of_stage=None if about["of_stage"] is None else point(about["of_stage"]),
        seconds=about["seconds"],
        rng_state={kind: tensors[f"random/{kind}"] for kind in ("cpu", "cuda") if f"random/{kind}" in tensors},
    )
