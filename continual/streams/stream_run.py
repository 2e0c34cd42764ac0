"""A run of a stream, as every process that takes part in it sees it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeVar

from continual.backbones.backbone import Backbone
from continual.callbacks import RunCallbacks
from registry import Registry, StoredPosition
from registry.errors import Disconnected
from tasks import Stream, TaskData

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class StreamRun:
    """One run of one stream.

    Attributes:
        backbone: The frozen backbone.
        registry: Where positions are claimed and deltas registered.
        stream: The stream.
        loaded: The rows by position, without positions that were purged.
        max_attempts: By position, how often learning it may have been started in all.
        callbacks: Called as learning goes on.
        migrated_from: By task, the delta of another backbone whose recipe and rows are learned again.
    """

    backbone: Backbone
    registry: Registry
    stream: Stream
    loaded: Mapping[int, TaskData]
    max_attempts: Mapping[int, int]
    callbacks: RunCallbacks
    migrated_from: Mapping[str, str] = field(default_factory=dict)

    def positions(self) -> list[StoredPosition]:
        """Return the positions of this run; another controller's stream file may name more tasks."""
        return [position for position in self._unpurged_positions() if position.number in self.loaded]

    def measurable_positions(self) -> list[StoredPosition]:
        """Return the positions up to the first whose rows are not loaded."""
        return [*takewhile(lambda position: position.number in self.loaded, self._unpurged_positions())]

    def open_positions(self) -> list[StoredPosition]:
        """Return the positions that are still to be learned, here or in another process."""
        return [position for position in self.positions() if self._is_open(position)]

    def retry_on_disconnect(self, work: Callable[[], T]) -> T:
        """Call `work`, retrying while the database connection is lost (`work` must be idempotent)."""
        while True:
            try:
                return work()
            except Disconnected as error:
                log.warning("stream %s: %s", self.stream.name, error)

    def _is_open(self, position: StoredPosition) -> bool:
        can_retry = position.state == "failed" and position.attempts < self.max_attempts[position.number]
        return can_retry or position.state in ("waiting", "held")

    def _unpurged_positions(self) -> list[StoredPosition]:
        return [position for position in self.registry.positions(self.stream.name) if not position.purged]
