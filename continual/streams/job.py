"""A stream that is being learned, as every process that has a part in it sees it."""

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
    """One run through one stream.

    loaded: rows by position, without what was purged · most: how often learning each position may have been begun ·
    moved: by task, the delta of another backbone whose recipe and rows it is learned by.
    """

    backbone: Backbone
    registry: Registry
    stream: Stream
    loaded: Mapping[int, TaskData]
    max_attempts: Mapping[int, int]
    watcher: RunCallbacks
    migrated_from: Mapping[str, str] = field(default_factory=dict)

    def positions(self) -> list[StoredPosition]:
        """Those of this run: the file of another controller may name more tasks."""
        return [position for position in self._kept() if position.number in self.loaded]

    def measurable_positions(self) -> list[StoredPosition]:
        """Those up to the first whose rows are not at hand."""
        return [*takewhile(lambda position: position.number in self.loaded, self._kept())]

    def open_positions(self) -> list[StoredPosition]:
        """The positions that are still to be learned, by whomever."""
        return [position for position in self.positions() if self._is_open(position)]

    def retry_on_disconnect(self, work: Callable[[], T]) -> T:
        """What `work` returns, done anew where the connection breaks: how far everything is, the registry knows."""
        while True:
            try:
                return work()
            except Disconnected as error:
                log.warning("stream %s: %s", self.stream.name, error)

    def _is_open(self, position: StoredPosition) -> bool:
        again = position.state == "failed" and position.attempts < self.max_attempts[position.number]
        return again or position.state in ("waiting", "held")

    def _kept(self) -> list[StoredPosition]:
        return [position for position in self.registry.positions(self.stream.name) if not position.purged]
