"""Checkpoints of a task being learned, in the registry, from which another process can resume it."""

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

MIN_INTERVAL_SECONDS = 10.0  # of learning, which a crash may lose
MAX_OVERHEAD = 0.02  # the largest share of the time that saving may take: large deltas are saved less often

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskPlan:
    """The decisions that precede the training of a task; a resuming process takes them over.

    Attributes:
        candidate: The method and the learning rate.
        search_trials: The trials of the search for them.
        subspace_deltas: The deltas that span the subspace in which the task is learned.
        neighbours: The learned deltas that may be a start.
    """

    candidate: SearchCandidate
    search_trials: tuple[SearchTrial, ...]
    subspace_deltas: tuple[Neighbour, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A point from which learning a task can be resumed.

    Attributes:
        plan: The decisions that preceded training.
        start: The names of the deltas that the start was made of; none for scratch.
        training_state: The state of the training.
        seconds: The time of learning so far.
    """

    plan: TaskPlan
    start: tuple[str, ...]
    training_state: TrainingState
    seconds: float


class CheckpointWriter:
    """Saves the checkpoints of a claimed position in the registry, at intervals of time."""

    def __init__(self, registry: Registry, stream: str, *, number: int, holder: str, recipe: str) -> None:
        self._registry, self._stream, self._number, self._holder = registry, stream, number, holder
        self._recipe, self._due = recipe, time.perf_counter() + MIN_INTERVAL_SECONDS

    def load_latest(self) -> Checkpoint | None:
        """Load the last checkpoint of any holder; None, with a warning, where it cannot be used."""
        try:
            stored = load_checkpoint(self._registry, self._stream, number=self._number)
            return None if stored is None else _deserialize(stored, recipe=self._recipe, registry=self._registry)
        except (BlobError, DeltaError, NotFound, KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("position %d of %s is learned from its beginning: %s", self._number, self._stream, reason)
            return None

    def __call__(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint where one is due; a failure to save is logged, and training goes on.

        Raises:
            ClaimLost: Another holder has taken the position over.
        """
        started = time.perf_counter()
        if started < self._due:
            return
        try:
            save_checkpoint(
                self._registry,
                self._stream,
                number=self._number,
                holder=self._holder,
                epoch=len(checkpoint.training_state.curve) - 1,
                data=_serialize(checkpoint, recipe=self._recipe),
            )
        except ClaimLost:
            raise
        except RegistryError as error:
            log.warning("no checkpoint of position %d of %s, learning goes on: %s", self._number, self._stream, error)
        ended = time.perf_counter()
        self._due = ended + max(MIN_INTERVAL_SECONDS, (ended - started) / MAX_OVERHEAD)


def _serialize(checkpoint: Checkpoint, *, recipe: str) -> bytes:
    tensors, state = to_tensors(checkpoint.training_state)
    plan = checkpoint.plan
    metadata = {
        "recipe": recipe,
        "arm": plan.candidate.to_json(),
        "tried": [trial.to_json() for trial in plan.search_trials],
        "spanning": [neighbour.name for neighbour in plan.subspace_deltas],
        "neighbours": [(neighbour.name, neighbour.is_previous_version) for neighbour in plan.neighbours],
        "start": checkpoint.start,
        "seconds": checkpoint.seconds,
        "course": state,
    }
    return serialize(tensors, metadata)


def _deserialize(data: bytes, *, recipe: str, registry: Registry) -> Checkpoint:
    """Read what `_serialize` wrote.

    Raises:
        ValueError: The checkpoint is of another recipe.
        NotFound, BlobError: A delta that it names is gone.
    """
    tensors, metadata = deserialize(data, what="checkpoint")
    if metadata["recipe"] != recipe:
        raise ValueError("its checkpoint is of another recipe")

    trials = tuple(map(SearchTrial.from_json, metadata["tried"]))
    basis = tuple(load_neighbour(registry, name) for name in metadata["spanning"])
    neighbours = tuple(
        load_neighbour(registry, name, is_previous_version=again) for name, again in metadata["neighbours"]
    )
    plan = TaskPlan(SearchCandidate.from_json(metadata["arm"]), trials, basis, neighbours)
    start = metadata["start"]
    names = (start,) if isinstance(start, str) else tuple(start or ())  # release 0.1.0 wrote one name, or null
    return Checkpoint(plan, names, from_tensors(tensors, metadata["course"]), metadata["seconds"])
