"""A Ray worker: it loads the backbone once, and learns the positions that it claims."""

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
from continual.streams.stream_run import StreamRun
from continual.streams.worker_loop import learn_claimed_positions
from registry import Registry, current_process_id, redact
from tasks import Stream, TaskData
from tasks.errors import ContinualError

FLUSH_SECONDS = 0.2  # seconds in which a worker's events are collected into one batch
FORWARDED_CALLBACKS = ("on_note", "on_start", "on_step", "on_failed")  # the driver itself calls the others
# A call of a callback (its name and arguments), a log record, or None at the end.
WorkerEvent = tuple[str, tuple[Any, ...]] | logging.LogRecord | None
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker needs to take part in a run; it is sent to another process.

    Attributes:
        registry: URL of the registry's database.
        blobs: URL of its blobs.
        registry_probe: Verifies that the worker reaches the same registry and blobs as the driver.
        name: The backbone's name in the registry.
        backbone_source: The name, hub id or folder from which the worker loads the backbone.
        fingerprint: The fingerprint that the loaded backbone must have.
        pooling: The pooling of the backbone's features.
        device: The device of the backbone, `cpu` or `cuda`.
        dtype: The dtype of the backbone's weights, such as `float32`.
        threads: The number of PyTorch's threads.
        stream: The stream.
        loaded: As in `StreamRun`.
        max_attempts: As in `StreamRun`.
        migrated_from: As in `StreamRun`.
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

    def stream_run(self, callbacks: RunCallbacks) -> StreamRun:
        """Open the registry, load the backbone, and return the run as this process sees it.

        Raises:
            BackboneError: The backbone cannot be loaded here, or has other weights.
            InputError: This is another registry, or it has other blobs.
            RegistryError: The registry cannot be opened.
        """
        registry = Registry.open(self.registry, self.blobs)
        self.registry_probe.verify(registry)
        return StreamRun(
            self._load_backbone(), registry, self.stream, self.loaded, self.max_attempts, callbacks, self.migrated_from
        )

    def _load_backbone(self) -> Backbone:
        backbone = load_backbone(self.backbone_source, device=self.device, dtype=self.dtype)
        if backbone.fingerprint != self.fingerprint:
            raise BackboneError(
                f"backbone {self.backbone_source!r} has the fingerprint {backbone.fingerprint[:12]} here and "
                f"{self.fingerprint[:12]} where the run was started; have the same weights on all nodes, and save a "
                "backbone that is in memory only to a folder"
            )
        return replace(backbone, name=self.name, pooling=self.pooling)


class Worker:
    """A Ray actor that learns positions of a stream in its own process."""

    def __init__(self) -> None:
        self._events: SimpleQueue[WorkerEvent] = SimpleQueue()

    def initialize(self, config: WorkerConfig) -> str:
        """Load what the run needs, and return this process's identity as a holder of claims.

        Raises:
            EngineError: The run cannot be prepared here; the message gives the reason.
        """
        torch.set_num_threads(config.threads)
        callbacks = {name: partial(self._put_event, name) for name in FORWARDED_CALLBACKS}
        try:
            self._run = config.stream_run(RunCallbacks(**callbacks))
        except ContinualError as error:
            raise EngineError(redact(f"on {gethostname()}: {type(error).__name__}: {error}")) from None
        return current_process_id()

    def run(self) -> Iterator[list[WorkerEvent]]:
        """Learn free positions until none is left, and yield batches of events as they happen."""
        with ThreadPoolExecutor(1, "learning") as thread, _forward_logs(self._events):
            learning = thread.submit(self._learn)
            learning.add_done_callback(lambda _: self._events.put(None))
            while (events := _drain(self._events))[-1] is not None:
                yield events
                time.sleep(FLUSH_SECONDS)
            yield events[:-1]
            learning.result()

    def _learn(self) -> None:
        for _ in learn_claimed_positions(self._run, current_process_id()):
            pass

    def _put_event(self, callback: str, *arguments: Any) -> None:
        self._events.put((callback, arguments))


def _drain(queue: "SimpleQueue[T]") -> list[T]:
    """Wait for the first item of a queue, and return all items that are in it."""
    items = [queue.get()]
    while not queue.empty():
        items.append(queue.get())
    return items


@contextmanager
def _forward_logs(events: "SimpleQueue[WorkerEvent]") -> Iterator[None]:
    """Put what this project's modules log inside the block into the queue too."""
    handler, names = QueueHandler(events), ("continual", "registry", "tasks")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
