"""How far learning a task has come, kept in the registry for whoever takes the task over."""

import logging
import time
from dataclasses import dataclass

from continual.errors import DeltaError
from continual.serialization import deserialize, serialize
from continual.training.method_search import SearchCandidate, SearchTrial
from continual.training.state import TrainingState, from_tensors, to_tensors
from continual.transfer.neighbours import load_neighbour
from continual.transfer.warm_start import Neighbour
from registry import Registry, load_checkpoint, save_checkpoint
from registry.errors import BlobError, ClaimLost, NotFound, RegistryError

MIN_INTERVAL_SECONDS = 10.0  # seconds of learning that may be lost
MAX_OVERHEAD = 0.02  # most of the time that keeping may take: large deltas are kept less often

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskPlan:
    """What is decided of a task before it is trained, and is not decided anew where another goes on.

    arm: its method and learning rate · tried: what a search for them looked at · spanning: the deltas that span the
    subspace it is learned in · neighbours: those that may be a start.
    """

    candidate: SearchCandidate
    search_trials: tuple[SearchTrial, ...]
    subspace_deltas: tuple[Neighbour, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What learning a task can go on from. start: the neighbours it began with, none from scratch · seconds: so far."""

    plan: TaskPlan
    start: tuple[str, ...]
    training_state: TrainingState
    seconds: float


class CheckpointWriter:
    """Keeps the checkpoints of a position that `holder` holds, in the registry, where enough time has passed."""

    def __init__(self, registry: Registry, stream: str, *, number: int, holder: str, recipe: str) -> None:
        self._registry, self._stream, self._number, self._holder = registry, stream, number, holder
        self._recipe, self._due = recipe, time.perf_counter() + MIN_INTERVAL_SECONDS

    def load_latest(self) -> Checkpoint | None:
        """The last checkpoint that was kept, by whomever; None, with a warning, where it is of no use."""
        try:
            stored = load_checkpoint(self._registry, self._stream, number=self._number)
            return None if stored is None else _read(stored, recipe=self._recipe, registry=self._registry)
        except (BlobError, DeltaError, NotFound, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("position %d of %s is learned from its beginning: %s", self._number, self._stream, reason)
            return None

    def __call__(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, where it is due.

        One that cannot be kept stops no training; ClaimLost, raised where another has taken the position over, does.
        """
        began = time.perf_counter()
        if began < self._due:
            return
        try:
            save_checkpoint(
                self._registry,
                self._stream,
                number=self._number,
                holder=self._holder,
                epoch=len(checkpoint.training_state.curve) - 1,
                data=_written(checkpoint, recipe=self._recipe),
            )
        except ClaimLost:
            raise
        except RegistryError as error:
            log.warning("no checkpoint of position %d of %s, learning goes on: %s", self._number, self._stream, error)
        ended = time.perf_counter()
        self._due = ended + max(MIN_INTERVAL_SECONDS, (ended - began) / MAX_OVERHEAD)


def _written(checkpoint: Checkpoint, *, recipe: str) -> bytes:
    tensors, course = to_tensors(checkpoint.training_state)
    plan = checkpoint.plan
    about = {
        "recipe": recipe,
        "arm": plan.candidate.to_json(),
        "tried": [trial.told() for trial in plan.search_trials],
        "spanning": [neighbour.name for neighbour in plan.subspace_deltas],
        "neighbours": [(neighbour.name, neighbour.is_previous_version) for neighbour in plan.neighbours],
        "start": checkpoint.start,
        "seconds": checkpoint.seconds,
        "course": course,
    }
    return serialize(tensors, about)


def _read(data: bytes, *, recipe: str, registry: Registry) -> Checkpoint:
    """The checkpoint that was written.

    Raises ValueError for one of another recipe, NotFound or BlobError where a delta that it names is gone.
    """
    tensors, about = deserialize(data, what="checkpoint")
    if about["recipe"] != recipe:
        raise ValueError("its checkpoint is of another recipe")

    tried = tuple(map(SearchTrial.read, about["tried"]))
    spanning = tuple(load_neighbour(registry, name) for name in about["spanning"])
    neighbours = tuple(load_neighbour(registry, name, again=again) for name, again in about["neighbours"])
    plan = TaskPlan(SearchCandidate.from_json(about["arm"]), tried, spanning, neighbours)
    start = (about["start"],) if isinstance(about["start"], str) else tuple(about["start"] or ())  # as 0.1.0 wrote it
    return Checkpoint(plan, start, from_tensors(tensors, about["course"]), about["seconds"])
