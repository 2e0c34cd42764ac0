"""Learn submitted tasks as they arrive, by priority and then in order of arrival.

Any number of watchers may share a registry: each arrival is a position that one of them claims, with heartbeats and
checkpoints as in a stream. A task that fails marks only its own arrival as failed. What is learned serves and routes at
once, but no score matrices are computed: a stream that never ends has no last row.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import final

from continual.backbones.backbone import Backbone
from continual.backbones.hub import hub_name
from continual.backbones.quantization import plain_name
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.streams.position_learner import PositionLearner
from continual.streams.preflight import load_and_check, require_trainable
from registry import (
    ARRIVAL_STREAM,
    Arrival,
    Registry,
    claim_arrival,
    current_process_id,
    heartbeat,
    hold_claim,
    normalized_backbone_name,
    quantized_name,
    release,
)
from registry.errors import ClaimLost, Interrupted, RegistryError
from tasks import Stream, read_task
from tasks.errors import ContinualError, InputError

POLL_SECONDS = 1.0  # seconds between two looks for new arrivals
CANCEL_CHECK_SECONDS = 5.0  # seconds of training between two checks whether the arrival was cancelled
TASK_FILE_SUFFIXES = (".yaml", ".yml")
FileStat = tuple[int, int, int]  # modification time in ns, size in bytes, inode

log = logging.getLogger(__name__)


def watch(
    backbone: Backbone,
    registry: Registry,
    *,
    folder: Path | None = None,
    idle: float | None = None,
    callbacks: RunCallbacks = NO_CALLBACKS,
) -> dict[int, str | None]:
    """Learn arrivals for this backbone, or for any backbone, until idle or interrupted.

    KeyboardInterrupt ends it: the arrival that is being learned then waits again.

    Args:
        backbone: The frozen backbone; arrivals that name another one are left alone.
        registry: The registry that the arrivals are submitted to.
        folder: Task files in this folder are submitted too, each once it is completely written, and again after
            a change.
        idle: Return when there has been nothing to learn for this many seconds; None never returns.
        callbacks: Called as learning goes on.

    Returns:
        By arrival number, the error of every arrival that ended here; None where it was learned.

    Raises:
        InputError: `folder` is not a folder, or nothing can be trained on the backbone.
    """
    require_trainable(backbone)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder to watch; make it, or watch the registry alone (`registry`)")
    return ArrivalWorker(backbone, registry, folder, callbacks).run(idle)


@final
class ArrivalWorker:
    """A process that claims arrivals and learns them one after the other.

    Attributes:
        names: Names and fingerprint under which an arrival may ask for this backbone.
        watched_folder: The folder whose task files are submitted, or None.
        holder: The identity of this process in claims.
        claimed_number: The claimed arrival until it is learned, failed or released; 0 without a claim.
        outcomes: By arrival number, the error, or None where it was learned.
    """

    def __init__(self, backbone: Backbone, registry: Registry, folder: Path | None, callbacks: RunCallbacks) -> None:
        self.backbone, self.registry, self.callbacks = backbone, registry, callbacks
        unquantized_name, bits = plain_name(backbone.name)
        names = {unquantized_name, normalized_backbone_name(unquantized_name), hub_name(unquantized_name)}
        self.names = {backbone.fingerprint, *(quantized_name(name, bits) for name in names)}
        self.watched_folder = None if folder is None else WatchedFolder(registry, folder)
        self.holder = current_process_id()
        self.claimed_number = 0
        notify_and_check = replace(callbacks, on_step=self._on_step, on_failed=self._on_failed)
        self.position_learner = PositionLearner(
            backbone, registry, Stream.model_construct(name=ARRIVAL_STREAM), notify_and_check, self.holder
        )
        self.outcomes: dict[int, str | None] = {}
        self.next_claim_check = 0.0

    def run(self, idle: float | None) -> dict[int, str | None]:
        """Learn arrivals until idle or interrupted, release what is still claimed, and return the outcomes."""
        try:
            self._run_until_idle(idle)
        except KeyboardInterrupt:
            log.info("interrupted: watching ends")
        finally:
            with suppress(RegistryError):  # otherwise it is taken over once this process has ended
                self._release_claim()
        return self.outcomes

    def _run_until_idle(self, idle: float | None) -> None:
        last_active = time.monotonic()
        while True:
            try:
                if self._learn_next():
                    last_active = time.monotonic()
                    continue
                if self._has_more_to_come():
                    last_active = time.monotonic()
                elif idle is not None and time.monotonic() - last_active >= idle:
                    return
            except Interrupted as error:  # the database is unreachable, or other watchers were quicker many times
                log.warning("arrivals: %s", error)
                last_active = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _learn_next(self) -> bool:
        """Submit changed task files and learn the next arrival; return whether there was one."""
        self._release_claim()  # a claim that could not be released while the database was unreachable
        if self.watched_folder:
            self.watched_folder.submit_changed()
        arrival = claim_arrival(self.registry, backbones=self.names, holder=self.holder)
        if arrival is not None:
            self.claimed_number = arrival.number
            self._learn_arrival(arrival)
            self.claimed_number = 0
        return arrival is not None

    def _has_more_to_come(self) -> bool:
        return self.registry.arrivals_left(self.names) or bool(
            self.watched_folder and self.watched_folder.has_unsettled_files
        )

    def _learn_arrival(self, arrival: Arrival) -> None:
        try:
            # Rows may be downloaded, which takes time: heartbeats keep the claim meanwhile.
            with hold_claim(self.registry, ARRIVAL_STREAM, number=arrival.number, holder=self.holder):
                stream = Stream.model_validate(arrival.spec)
                (data,) = load_and_check(self.backbone, self.registry, stream, alone=True)
        except Interrupted:
            raise
        except Exception as error:
            if not isinstance(error, ContinualError):
                log.error("task %s cannot be read", arrival.task, exc_info=True)
            self.position_learner.fail(arrival.number, arrival.task, error)
            return
        position_learner = replace(self.position_learner, stream=stream.model_copy(update={"name": ARRIVAL_STREAM}))
        for delta in position_learner.learn_positions({arrival.number: data}):
            self.outcomes[arrival.number] = None
            self.callbacks.on_learned(arrival.task, delta)

    def _on_step(self, task: str, done: int, total: int) -> None:
        """Report a training step; stop the training where the claim on the arrival was lost."""
        self.callbacks.on_step(task, done, total)
        if time.monotonic() < self.next_claim_check:
            return
        lost = False
        with suppress(RegistryError):  # an unreachable registry is tried again at the next check
            lost = not heartbeat(self.registry, ARRIVAL_STREAM, number=self.claimed_number, holder=self.holder)
        self.next_claim_check = time.monotonic() + CANCEL_CHECK_SECONDS
        if lost:
            raise ClaimLost(
                f"arrival {self.claimed_number} was cancelled, or another has taken it over; nothing of it is kept"
            )

    def _on_failed(self, task: str, error: str) -> None:
        self.outcomes[self.claimed_number] = error
        self.callbacks.on_failed(task, error)

    def _release_claim(self) -> None:
        if self.claimed_number:
            release(self.registry, ARRIVAL_STREAM, number=self.claimed_number, holder=self.holder)
            self.claimed_number = 0


@final
class WatchedFolder:
    """The task files of a folder: their state, since when it is unchanged, and the state last submitted."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry, self.folder = registry, folder
        self._observed: dict[Path, tuple[FileStat, float]] = {}
        self._submitted: dict[Path, FileStat] = {}

    @property
    def has_unsettled_files(self) -> bool:
        """True while a file has changed and may still be in the middle of being written."""
        return any(self._submitted.get(path) != stat for path, (stat, _) in self._observed.items())

    def submit_changed(self) -> None:
        """Submit every file that changed since it was last read and has been stable for a while.

        A file that holds no valid task is reported once, until it changes.

        Raises:
            RegistryError: The registry cannot be written; the file is submitted at the next call.
        """
        now, observed_before = time.monotonic(), self._observed
        new_file = (None, now)
        self._observed = {
            path: (stat, since if stat == previous_stat else now)
            for path, stat in self._stat_task_files().items()
            for previous_stat, since in [observed_before.get(path, new_file)]
        }
        for path, (stat, since) in sorted(self._observed.items()):
            if self._submitted.get(path) != stat and now - since >= POLL_SECONDS:
                self._submit(path)
                self._submitted[path] = stat

    def _submit(self, path: Path) -> None:
        try:
            number = self.registry.submit(read_task(path), once=True)
        except InputError as error:
            log.warning("%s is not submitted, until it changes: %s", path.name, error)
        else:
            log.info("%s is arrival %d", path.name, number)

    def _stat_task_files(self) -> Mapping[Path, FileStat]:
        stats = {}
        try:
            for path in self.folder.iterdir():
                is_hidden = path.name.startswith(".")  # such as an editor's drafts
                if path.suffix in TASK_FILE_SUFFIXES and not is_hidden:
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        stats[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError as error:
            log.warning("%s cannot be looked into: %s", self.folder, error)
            return {path: stat for path, (stat, _) in self._observed.items()}
        return stats
