"""The worker pool of one run: it starts workers, handles their events, and replaces lost ones."""

import logging
import time
from collections import Counter
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from continual.cluster import ResourceRequest
from continual.errors import EngineError, TrainingError
from continual.streams.evaluation import StreamEvaluator
from continual.streams.position_learner import PositionLearner
from continual.streams.ray.worker import Worker, WorkerEvent
from continual.streams.stream_run import StreamRun
from continual.streams.worker_loop import POLL_SECONDS
from registry import StoredPosition, checkpoint_epoch, release_claims_of

MAX_WORKER_DEATHS = 3  # workers lost at one epoch of a task before the task is taken for the cause
STARTUP_TIMEOUT = 120.0  # seconds in which workers that the cluster has room for should have started
NO_WORKER_TIMEOUT = 600.0  # seconds that a run waits without any worker for room in its cluster

log = logging.getLogger(__name__)


class WorkerPool:
    """Ray actors that learn the positions of one run.

    Args:
        run: The run.
        config_ref: Ray's reference to the `WorkerConfig` that every worker is initialized with.
        request: The resources that each worker reserves.
    """

    def __init__(self, run: StreamRun, config_ref: Any, request: ResourceRequest) -> None:
        self._run, self._config_ref = run, config_ref
        self._actor_class = ray.remote(Worker).options(
            num_cpus=request.cpus, num_gpus=request.gpus, memory=request.memory, max_restarts=0
        )
        self._starting: dict[Any, Any] = {}  # actors by the pending result of `Worker.initialize`
        self._working: dict[Any, tuple[Any, str]] = {}  # actors and holders by their stream of events
        # Lost workers by position and last checkpointed epoch; those without a claim by None and the number of learned
        # positions.
        self._deaths: Counter[tuple[int | None, int | None]] = Counter()
        self._seconds_without_worker = 0.0  # seconds of waiting for events since the last worker ended

    def start_workers(self, count: int) -> None:
        """Start `count` workers, and wait until those that the cluster has room for are initialized.

        Raises:
            EngineError: A worker cannot start, or there is no room for one.
        """
        for _ in range(count):
            self._start()
        started, _ = ray.wait([*self._starting], num_returns=count, timeout=STARTUP_TIMEOUT)
        started = started or ray.wait([*self._starting], timeout=NO_WORKER_TIMEOUT)[0]
        if not started:
            raise EngineError(
                f"the cluster had no room for a worker for {STARTUP_TIMEOUT + NO_WORKER_TIMEOUT:g} s; "
                "others use what it has"
            )
        for initialization in started:
            try:
                ray.get(initialization)
            except RayError as error:
                raise EngineError(f"a worker cannot start {_reason(error)}") from error

    def run_until_done(self) -> None:
        """Let the workers learn, and evaluate meanwhile, until no position is left that could become free.

        Raises:
            TrainingError: No worker is left, or the cluster had no room for one for too long.
        """
        evaluator = StreamEvaluator(self._run)
        while True:
            evaluator.evaluate_available()
            open_positions = self._run.retry_on_disconnect(self._run.open_positions)
            if not open_positions and not self._working:
                return
            self._require_worker()
            self._report_other_holders(open_positions)
            self._receive_events(POLL_SECONDS)

    def shutdown(self) -> None:
        """Kill all workers and release what they claimed."""
        event_streams = [*self._working]
        for actor in (*self._starting.values(), *(actor for actor, _ in self._working.values())):
            ray.kill(actor)
        if event_streams:
            # A worker that has not ended yet may still claim a position.
            ray.wait(event_streams, num_returns=len(event_streams), timeout=STARTUP_TIMEOUT)
        for _, holder in self._working.values():
            self._run.retry_on_disconnect(
                partial(release_claims_of, self._run.registry, self._run.stream.name, holder=holder)
            )

    def _start(self) -> None:
        actor = self._actor_class.remote()
        self._starting[actor.initialize.remote(self._config_ref)] = actor

    def _receive_events(self, seconds: float) -> None:
        """Handle the events of workers for so many seconds, or until one of them ends."""
        started_at, count = time.monotonic(), len(self._working)
        while len(self._working) == count and (remaining := started_at + seconds - time.monotonic()) > 0:
            if not (pending := [*self._starting, *self._working]):
                return
            for ready in ray.wait(pending, timeout=remaining)[0]:
                if ready in self._starting:
                    self._on_started(ready, self._starting.pop(ready))
                else:
                    self._handle_events(ready)
        self._seconds_without_worker = (
            0.0 if self._working else self._seconds_without_worker + time.monotonic() - started_at
        )

    def _on_started(self, initialization: Any, actor: Any) -> None:
        try:
            holder = ray.get(initialization)
        except RayError as error:
            log.warning("a worker cannot start %s", _reason(error))
        else:
            self._working[actor.run.options(num_returns="streaming").remote()] = (actor, holder)

    def _handle_events(self, event_stream: Any) -> None:
        try:
            for event in ray.get(next(event_stream)):
                self._forward(event)
        except StopIteration:
            del self._working[event_stream]
        except RayError as error:
            actor, holder = self._working.pop(event_stream)
            ray.kill(actor)
            self._replace(holder, _reason(error))

    def _forward(self, event: WorkerEvent) -> None:
        if isinstance(event, logging.LogRecord):
            logging.getLogger(event.name).handle(event)
        elif event:
            callback, arguments = event
            getattr(self._run.callbacks, callback)(*arguments)

    def _replace(self, holder: str, reason: str) -> None:
        """Release what a lost worker claimed, and start another one where that makes sense."""
        run = self._run
        positions = run.retry_on_disconnect(run.positions)
        claimed = [position for position in positions if position.holder == holder]
        log.warning("worker %s is lost %s; it held %s", holder, reason, [p.task for p in claimed] or "nothing")
        for position in claimed:
            epoch_of_position = (position.number, run.retry_on_disconnect(partial(self._checkpointed_epoch, position)))
            self._deaths[epoch_of_position] += 1
            if self._deaths[epoch_of_position] >= MAX_WORKER_DEATHS:
                error = TrainingError(f"{MAX_WORKER_DEATHS} workers were lost while they learned it; the last {reason}")
                PositionLearner(run.backbone, run.registry, run.stream, run.callbacks, holder).fail(
                    position.number, position.task, error
                )
        run.retry_on_disconnect(partial(release_claims_of, run.registry, run.stream.name, holder=holder))
        progress = (None, sum(position.delta is not None for position in positions))
        self._deaths[progress] += not claimed
        if self._deaths[progress] < MAX_WORKER_DEATHS and run.retry_on_disconnect(run.open_positions):
            self._start()

    def _checkpointed_epoch(self, position: StoredPosition) -> int | None:
        return checkpoint_epoch(self._run.registry, self._run.stream.name, number=position.number)

    def _require_worker(self) -> None:
        if not self._working and not self._starting:
            raise TrainingError(
                "no worker is left to learn what waits; see the warnings above, and run the stream again"
            )
        if self._seconds_without_worker > NO_WORKER_TIMEOUT:
            raise TrainingError(
                f"the cluster had no room for a worker for {NO_WORKER_TIMEOUT:g} s; run the stream again when it has"
            )

    def _report_other_holders(self, open_positions: list[StoredPosition]) -> None:
        own_holders = {holder for _, holder in self._working.values()}
        for position in open_positions:
            if position.holder and position.holder not in own_holders:
                self._run.callbacks.on_wait(position.task, position.holder)


def _reason(error: RayError) -> str:
    """Return in one line why a worker was lost: the error that it raised, or Ray's account of its end."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return str(cause) if isinstance(cause, EngineError) else f"({type(cause).__name__}: {cause})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"({next((line for line in lines if 'exit type' in line), summary)})"
