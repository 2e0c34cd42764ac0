"""Tasks that keep arriving: a watcher learns what was submitted, by priority and then in order of arrival.

Any number of watchers may share a registry: each arrival is a position that one of them holds, with heartbeats and
checkpoints as in a stream. A task that fails fails its own arrival. What is learned serves and routes at once; the
matrices that a stream is measured by are not: a stream that never ends has no last row.
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
from continual.streams.positions import PositionLearner
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

POLL_SECONDS = 1.0  # seconds between looks for what has arrived
CANCEL_CHECK_SECONDS = 5.0  # seconds of training between looks whether an arrival was cancelled
TASK_FILE_SUFFIXES = (".yaml", ".yml")
FileStat = tuple[int, int, int]  # what changes when a file does: moment, size, and which file it is

log = logging.getLogger(__name__)


def watch(
    backbone: Backbone,
    registry: Registry,
    *,
    folder: Path | None = None,
    idle: float | None = None,
    watcher: RunCallbacks = NO_CALLBACKS,
) -> dict[int, str | None]:
    """Learn what arrives for this backbone or for any; by the number of an arrival, what went wrong, None if nothing.

    It ends when it is interrupted (KeyboardInterrupt): what is being learned then waits again.

    folder: task files that are dropped there arrive too, each once it is whole, and again when it has changed ·
    idle: end when for so many seconds nothing has been left to learn; without it, never.
    Raises InputError for a folder that is none.
    """
    require_trainable(backbone)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder to watch; make it, or watch the registry alone (`registry`)")
    return ArrivalWorker(backbone, registry, folder, watcher).run(idle)


@final
class ArrivalWorker:
    """One process that watches. holding: the arrival that it has claimed, until it is learned, failed or given back."""

    def __init__(self, backbone: Backbone, registry: Registry, folder: Path | None, watcher: RunCallbacks) -> None:
        self.backbone, self.registry, self.watcher = backbone, registry, watcher
        plain, bits = plain_name(backbone.name)
        names = {plain, normalized_backbone_name(plain), hub_name(plain)}
        self.names = {backbone.fingerprint, *(quantized_name(name, bits) for name in names)}
        self.dropped = None if folder is None else WatchedFolder(registry, folder)
        self.holder, self.holding = current_process_id(), 0
        told = replace(watcher, on_step=self._step, on_failed=self._failed)
        self.learning = PositionLearner(
            backbone, registry, Stream.model_construct(name=ARRIVAL_STREAM), told, self.holder
        )
        self.ended: dict[int, str | None] = {}
        self.look_at = 0.0

    def run(self, idle: float | None) -> dict[int, str | None]:
        try:
            self._until(idle)
        except KeyboardInterrupt:
            log.info("told to end")
        finally:
            with suppress(RegistryError):  # else it is taken over once this process is gone
                self._give_back()
        return self.ended

    def _until(self, idle: float | None) -> None:
        busy = time.monotonic()
        while True:
            try:
                if self._round():
                    busy = time.monotonic()
                    continue
                if self._may_get_more():
                    busy = time.monotonic()
                elif idle is not None and time.monotonic() - busy >= idle:
                    return
            except Interrupted as error:  # the database is away, or others were quicker, again and again
                log.warning("arrivals: %s", error)
                busy = time.monotonic()
            time.sleep(POLL_SECONDS)

    def _round(self) -> bool:
        """Look at the folder, and learn the arrival whose turn it is; whether there was one."""
        self._give_back()  # what could not be, while the database was away
        if self.dropped:
            self.dropped.submit_changed()
        arrival = claim_arrival(self.registry, backbones=self.names, holder=self.holder)
        if arrival is not None:
            self.holding = arrival.number
            self._learn(arrival)
            self.holding = 0
        return arrival is not None

    def _may_get_more(self) -> bool:
        return self.registry.arrivals_left(self.names) or bool(self.dropped and self.dropped.has_unsettled_files)

    def _learn(self, arrival: Arrival) -> None:
        try:
            with hold_claim(
                self.registry, ARRIVAL_STREAM, number=arrival.number, holder=self.holder
            ):  # rows may come from afar
                task = Stream.model_validate(arrival.spec)
                (data,) = load_and_check(self.backbone, self.registry, task, alone=True)
        except Interrupted:
            raise
        except Exception as error:
            if not isinstance(error, ContinualError):
                log.error("task %s cannot be read", arrival.task, exc_info=True)
            self.learning.fail(arrival.number, arrival.task, error)
            return
        learning = replace(self.learning, stream=task.model_copy(update={"name": ARRIVAL_STREAM}))
        for delta in learning.learn_positions({arrival.number: data}):
            self.ended[arrival.number] = None
            self.watcher.on_learned(arrival.task, delta)

    def _step(self, task: str, done: int, total: int) -> None:
        """Tell of a step of training, and end it where the arrival is no longer ours."""
        self.watcher.on_step(task, done, total)
        if time.monotonic() < self.look_at:
            return
        lost = False
        with suppress(RegistryError):  # whoever is away is asked again
            lost = not heartbeat(self.registry, ARRIVAL_STREAM, number=self.holding, holder=self.holder)
        self.look_at = time.monotonic() + CANCEL_CHECK_SECONDS
        if lost:
            raise ClaimLost(
                f"arrival {self.holding} was cancelled, or another has taken it over; nothing of it is kept"
            )

    def _failed(self, task: str, error: str) -> None:
        self.ended[self.holding] = error
        self.watcher.on_failed(task, error)

    def _give_back(self) -> None:
        if self.holding:
            release(self.registry, ARRIVAL_STREAM, number=self.holding, holder=self.holder)
            self.holding = 0


@final
class WatchedFolder:
    """The task files in a folder; of each, how it looked, since when, and how it looked when it was read."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry, self.folder = registry, folder
        self._seen: dict[Path, tuple[FileStat, float]] = {}
        self._read: dict[Path, FileStat] = {}

    @property
    def has_unsettled_files(self) -> bool:
        """Whether one of them may still be being written."""
        return any(self._read.get(path) != look for path, (look, _) in self._seen.items())

    def submit_changed(self) -> None:
        """Submit what has changed since it was last read, and not for a while; say once what is no task.

        Raises RegistryError where the registry takes none: it is submitted the next time.
        """
        moment, before = time.monotonic(), self._seen
        unseen = (None, moment)
        self._seen = {
            path: (look, since if look == known else moment)
            for path, look in self._files().items()
            for known, since in [before.get(path, unseen)]
        }
        for path, (look, since) in sorted(self._seen.items()):
            if self._read.get(path) != look and moment - since >= POLL_SECONDS:
                self._submit(path)
                self._read[path] = look

    def _submit(self, path: Path) -> None:
        try:
            number = self.registry.submit(read_task(path), once=True)
        except InputError as error:
            log.warning("%s is not submitted, until it changes: %s", path.name, error)
        else:
            log.info("%s is arrival %d", path.name, number)

    def _files(self) -> Mapping[Path, FileStat]:
        found = {}
        try:
            for path in self.folder.iterdir():
                if path.suffix in TASK_FILE_SUFFIXES and not path.name.startswith("."):  # such as an editor's drafts
                    with suppress(FileNotFoundError):
                        said = path.stat()
                        found[path] = (said.st_mtime_ns, said.st_size, said.st_ino)
        except OSError as error:
            log.warning("%s cannot be looked into: %s", self.folder, error)
            return {path: look for path, (look, _) in self._seen.items()}
        return found
