"""The workers of one run, as its driver sees them: started, heard, and replaced where they are lost."""

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
from continual.streams.job import StreamRun
from continual.streams.positions import PositionLearner
from continual.streams.ray.worker import Worker, WorkerEvent
from continual.streams.worker_loop import POLL_SECONDS
from registry import StoredPosition, checkpoint_epoch, release_claims_of

MAX_WORKER_DEATHS = 3  # workers that may be lost at one place of a task before the task is taken for the cause
STARTUP_TIMEOUT = 120.0  # seconds in which the workers that there is room for should have started
NO_WORKER_TIMEOUT = 600.0  # seconds that a run waits without any worker for its cluster to have room

log = logging.getLogger(__name__)


class WorkerPool:
    """Actors that learn a job; `given` is a reference to what each of them is given."""

    def __init__(self, job: StreamRun, given: Any, share: ResourceRequest) -> None:
        self._job, self._given = job, given
        self._actor = ray.remote(Worker).options(
            num_cpus=share.cpus, num_gpus=share.gpus, memory=share.memory, max_restarts=0
        )
        self._starting: dict[Any, Any] = {}  # actors by the answer that is awaited: the holder that each is
        self._working: dict[Any, tuple[Any, str]] = {}  # actors and holders by what they say
        self._lost: Counter[tuple[int | None, int | None]] = Counter()  # by position, and how far it was
        self._waited = 0.0  # seconds of hearing since there was a worker last

    def start_workers(self, count: int) -> None:
        """Start so many workers, and wait for them. Raises EngineError where one cannot start, or there is no room."""
        for _ in range(count):
            self._start()
        done, _ = ray.wait([*self._starting], num_returns=count, timeout=STARTUP_TIMEOUT)
        done = done or ray.wait([*self._starting], timeout=NO_WORKER_TIMEOUT)[0]
        if not done:
            raise EngineError(
                f"the cluster had no room for a worker for {STARTUP_TIMEOUT + NO_WORKER_TIMEOUT:g} s; "
                "others use what it has"
            )
        for answer in done:
            try:
                ray.get(answer)
            except RayError as error:
                raise EngineError(f"a worker cannot start {_reason(error)}") from error

    def run_until_done(self) -> None:
        """Let the workers learn, and measure meanwhile, until nothing is left that could become free.

        Raises LearnError where no worker is left.
        """
        measuring = StreamEvaluator(self._job)
        while True:
            measuring.evaluate_available()
            left = self._job.retry_on_disconnect(self._job.open_positions)
            if not left and not self._working:
                return
            self._require_worker()
            self._tell_of_others(left)
            self._receive_events(POLL_SECONDS)

    def shutdown(self) -> None:
        """End all workers; what they hold waits again."""
        working = [*self._working]
        for actor in (*self._starting.values(), *(actor for actor, _ in self._working.values())):
            ray.kill(actor)
        if working:
            ray.wait(
                working, num_returns=len(working), timeout=STARTUP_TIMEOUT
            )  # who is not gone yet may claim something
        for _, holder in self._working.values():
            self._job.retry_on_disconnect(
                partial(release_claims_of, self._job.registry, self._job.stream.name, holder=holder)
            )

    def _start(self) -> None:
        actor = self._actor.remote()
        self._starting[actor.initialize.remote(self._given)] = actor

    def _receive_events(self, seconds: float) -> None:
        """Hear what workers say for so long, or until one of them ends."""
        began, count = time.monotonic(), len(self._working)
        while len(self._working) == count and (rest := began + seconds - time.monotonic()) > 0:
            if not (crew := [*self._starting, *self._working]):
                return
            for one in ray.wait(crew, timeout=rest)[0]:
                if one in self._starting:
                    self._started(one, self._starting.pop(one))
                else:
                    self._listen(one)
        self._waited = 0.0 if self._working else self._waited + time.monotonic() - began

    def _started(self, answer: Any, actor: Any) -> None:
        try:
            holder = ray.get(answer)
        except RayError as error:
            log.warning("a worker cannot start %s", _reason(error))
        else:
            self._working[actor.run.options(num_returns="streaming").remote()] = (actor, holder)

    def _listen(self, sayings: Any) -> None:
        try:
            for said in ray.get(next(sayings)):
                self._pass_on(said)
        except StopIteration:
            del self._working[sayings]
        except RayError as error:
            actor, holder = self._working.pop(sayings)
            ray.kill(actor)
            self._replace(holder, _reason(error))

    def _pass_on(self, said: WorkerEvent) -> None:
        if isinstance(said, logging.LogRecord):
            logging.getLogger(said.name).handle(said)
        elif said:
            what, about = said
            getattr(self._job.watcher, what)(*about)

    def _replace(self, holder: str, reason: str) -> None:
        """Let what a lost worker held wait again, and start another one where that makes sense."""
        job = self._job
        positions = job.retry_on_disconnect(job.positions)
        held = [position for position in positions if position.holder == holder]
        log.warning("worker %s is lost %s; it held %s", holder, reason, [p.task for p in held] or "nothing")
        for position in held:
            place = (position.number, job.retry_on_disconnect(partial(self._reached, position)))
            self._lost[place] += 1
            if self._lost[place] >= MAX_WORKER_DEATHS:
                died = TrainingError(f"{MAX_WORKER_DEATHS} workers were lost while they learned it; the last {reason}")
                PositionLearner(job.backbone, job.registry, job.stream, job.watcher, holder).fail(
                    position.number, position.task, died
                )
        job.retry_on_disconnect(partial(release_claims_of, job.registry, job.stream.name, holder=holder))
        idle = (None, sum(position.delta is not None for position in positions))
        self._lost[idle] += not held
        if self._lost[idle] < MAX_WORKER_DEATHS and job.retry_on_disconnect(job.open_positions):
            self._start()

    def _reached(self, position: StoredPosition) -> int | None:
        return checkpoint_epoch(self._job.registry, self._job.stream.name, number=position.number)

    def _require_worker(self) -> None:
        if not self._working and not self._starting:
            raise TrainingError(
                "no worker is left to learn what waits; see the warnings above, and run the stream again"
            )
        if self._waited > NO_WORKER_TIMEOUT:
            raise TrainingError(
                f"the cluster had no room for a worker for {NO_WORKER_TIMEOUT:g} s; run the stream again when it has"
            )

    def _tell_of_others(self, left: list[StoredPosition]) -> None:
        own = {holder for _, holder in self._working.values()}
        for position in left:
            if position.holder and position.holder not in own:
                self._job.watcher.on_wait(position.task, position.holder)


def _reason(error: RayError) -> str:
    """What happened, in one line: what a worker raised, or what Ray knows of its end."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        return str(cause) if isinstance(cause, EngineError) else f"({type(cause).__name__}: {cause})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = lines[-1] if "creation task" in lines[0] else lines[0]
    return f"({next((line for line in lines if 'exit type' in line), raised)})"
