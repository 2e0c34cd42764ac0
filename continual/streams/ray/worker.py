"""What runs in a worker: it holds the backbone once, and learns what it claims until nothing is left."""

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from logging.handlers import QueueHandler
from queue import SimpleQueue
from socket import gethostname
from typing import Any, TypeVar

import torch

from continual.backbones.backbone import Backbone, load_backbone
from continual.backbones.hub import Pooling
from continual.callbacks import RunCallbacks
from continual.cluster import RegistryProbe
from continual.errors import BackboneError, EngineError
from continual.streams.job import StreamRun
from continual.streams.worker_loop import learn_claimed_positions
from registry import Registry, current_process_id, redact
from tasks import Stream, TaskData
from tasks.errors import ContinualError

FLUSH_SECONDS = 0.2  # seconds in which what a worker says is gathered
FORWARDED_CALLBACKS = ("on_note", "on_start", "on_step", "on_failed")  # of a watcher; the rest is the driver's to tell
WorkerEvent = (
    tuple[str, tuple[Any, ...]] | logging.LogRecord | None
)  # a call of the watcher, a line of the log, the end
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerConfig:
    """What a worker needs to do its part of a job.

    name: as the registry knows the backbone, `where` as it is loaded · most, moved: as of a job.
    """

    registry: str = field(repr=False)  # URLs may hold passwords
    blobs: str = field(repr=False)
    registry_probe: RegistryProbe
    name: str
    backbone_source: str
    fingerprint: str
    pooling: Pooling
    device: str
    dtype: str
    threads: int
    stream: Stream
    loaded: Mapping[int, TaskData] = field(repr=False)
    max_attempts: Mapping[int, int]
    migrated_from: Mapping[str, str]

    def stream_run(self, watcher: RunCallbacks) -> StreamRun:
        """The job as it is seen here. Raises BackboneError, InputError or RegistryError where it cannot be done."""
        registry = Registry.open(self.registry, self.blobs)
        self.registry_probe.verify(registry)
        return StreamRun(
            self._backbone(), registry, self.stream, self.loaded, self.max_attempts, watcher, self.migrated_from
        )

    def _backbone(self) -> Backbone:
        found = load_backbone(self.backbone_source, device=self.device, dtype=self.dtype)
        if found.fingerprint != self.fingerprint:
            raise BackboneError(
                f"backbone {self.backbone_source!r} has the fingerprint {found.fingerprint[:12]} here and "
                f"{self.fingerprint[:12]} where the run was started; have the same weights on all nodes, and save a "
                "backbone that is in memory only to a folder"
            )
        return replace(found, name=self.name, pooling=self.pooling)


class Worker:
    """An actor of one process."""

    def __init__(self) -> None:
        self._said: SimpleQueue[WorkerEvent] = SimpleQueue()

    def initialize(self, given: WorkerConfig) -> str:
        """Take in what is needed; the holder that this process is. Raises EngineError with the reason it cannot."""
        torch.set_num_threads(given.threads)
        told = {what: partial(self._say, what) for what in FORWARDED_CALLBACKS}
        try:
            self._job = given.stream_run(RunCallbacks(**told))
        except ContinualError as error:
            raise EngineError(redact(f"on {gethostname()}: {type(error).__name__}: {error}")) from None
        return current_process_id()

    def run(self) -> Iterator[list[WorkerEvent]]:
        """Learn what is free until nothing is left; what is said meanwhile, as it is said."""
        with ThreadPoolExecutor(1, "learning") as thread, _overheard(self._said):
            learning = thread.submit(self._learn)
            learning.add_done_callback(lambda _: self._said.put(None))
            while (said := _gathered(self._said))[-1] is not None:
                yield said
                time.sleep(FLUSH_SECONDS)
            yield said[:-1]
            learning.result()

    def _learn(self) -> None:
        for _ in learn_claimed_positions(self._job, current_process_id()):
            pass

    def _say(self, what: str, *about: Any) -> None:
        self._said.put((what, about))


def _gathered(queue: "SimpleQueue[T]") -> list[T]:
    """All that is in a queue, as soon as there is anything."""
    found = [queue.get()]
    while not queue.empty():
        found.append(queue.get())
    return found


@contextmanager
def _overheard(said: "SimpleQueue[WorkerEvent]") -> Iterator[None]:
    """What our own modules log inside is said as well."""
    handler, names = QueueHandler(said), ("continual", "registry", "tasks")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
