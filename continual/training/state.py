"""The state of a training after an epoch: all that the rest of it depends on, to the bit."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.deltas import Delta, delta_from_tensors
from continual.kinds import kind_of_delta

Metadata = dict[str, Any]
"""JSON beside the tensors of a state."""


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve.

    Attributes:
        number: The epoch; 0 is the start.
        loss: The mean training loss, in nats; None for the start.
        score: The validation score.
        validation_loss: The mean loss of the validation rows, in nats or, of a regression, as a share of the variance.
    """

    number: int
    loss: float | None
    score: float
    validation_loss: float


@dataclass(frozen=True)
class ScoredDelta:
    """A delta as it would be stored, and its point of the learning curve."""

    delta: Delta
    epoch: Epoch

    def better_of(self, other: "ScoredDelta") -> "ScoredDelta":
        """Return the delta of the better epoch, as its kind ranks them; this one if they are equal."""
        kind = kind_of_delta(self.delta)
        mine, others = (kind.rank(epoch.score, epoch.validation_loss) for epoch in (self.epoch, other.epoch))
        return other if others > mine else self


@dataclass(frozen=True)
class TrainingState:
    """A training between two epochs; its tensors are in use, so `to_tensors` copies them.

    Attributes:
        stage: The stage being trained.
        epochs: Epochs of this stage that are done.
        current: The delta after the last epoch.
        optimizer_state: The optimizer's tensors, by `index/name`.
        curve: All epochs so far.
        best: The best epoch so far.
        best_of_stage: The best epoch of this stage; None before its first.
        seconds: Seconds in training steps.
        rng_state: The states of the random number generators, by kind of device.
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
        """Return the beginning of a later stage, from the best epoch of this one; `self` for this stage."""
        if stage == self.stage:
            return self
        best = self.best_of_stage.delta if self.best_of_stage else self.current
        return replace(self, stage=stage, epochs=0, current=best, optimizer_state={}, best_of_stage=None)


def get_rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random number generators that training draws from, by kind of device.

    Returns:
        `cpu` and, on a GPU, `cuda`: bytes [S] each, of a size S that depends on the generator.
    """
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_rng_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore the states [S] that `get_rng_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def to_tensors(state: TrainingState) -> tuple[dict[str, Tensor], Metadata]:
    """Copy a state into tensors on the CPU, and JSON; the inverse of `from_tensors`.

    Returns:
        Copies of the state's tensors, shapes unchanged: deltas' by `trained/key` and `point n/key`, the optimizer's by
        `moments/index/name`, and those of the random number generators by `random/kind of device`; and the JSON.
    """
    points = [point for point in (state.best, state.best_of_stage) if point]
    deltas = {"trained": state.current} | {f"point {point.epoch.number}": point.delta for point in points}
    delta_tensors = {name: delta.tensors() for name, delta in deltas.items()}
    tensors = {f"{name}/{key}": value for name, values in delta_tensors.items() for key, value in values.items()}
    tensors |= {f"moments/{key}": value for key, value in state.optimizer_state.items()}
    tensors |= {f"random/{key}": value for key, value in state.rng_state.items()}
    metadata = {
        "stage": state.stage,
        "epochs": state.epochs,
        "curve": [astuple(epoch) for epoch in state.curve],
        "best": state.best.epoch.number,
        "of_stage": state.best_of_stage and state.best_of_stage.epoch.number,
        "seconds": state.seconds,
        # A file does not keep the order of its tensors, and sums over them depend on it.
        "deltas": {
            name: {"about": delta.metadata(), "order": list(delta_tensors[name])} for name, delta in deltas.items()
        },
        "moments": list(state.optimizer_state),
    }
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}, metadata


def from_tensors(tensors: Mapping[str, Tensor], metadata: Metadata) -> TrainingState:
    """Restore the state that `to_tensors` copied.

    Args:
        tensors: By the names of `to_tensors`, of any shape.
        metadata: The JSON.

    Raises:
        KeyError, TypeError, ValueError, DeltaError: The tensors or the JSON are not of a state.
    """
    curve = tuple(Epoch(*point) for point in metadata["curve"])

    def delta(name: str) -> Delta:
        stored = metadata["deltas"][name]
        return delta_from_tensors({key: tensors[f"{name}/{key}"] for key in stored["order"]}, stored["about"])

    def point(number: int) -> ScoredDelta:
        return ScoredDelta(delta(f"point {number}"), curve[number])

    return TrainingState(
        stage=metadata["stage"],
        epochs=metadata["epochs"],
        current=delta("trained"),
        optimizer_state={key: tensors[f"moments/{key}"] for key in metadata["moments"]},
        curve=curve,
        best=point(metadata["best"]),
        best_of_stage=None if metadata["of_stage"] is None else point(metadata["of_stage"]),
        seconds=metadata["seconds"],
        rng_state={kind: tensors[f"random/{kind}"] for kind in ("cpu", "cuda") if f"random/{kind}" in tensors},
    )
