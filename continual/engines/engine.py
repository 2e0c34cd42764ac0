"""What an engine is."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from continual.job import StreamRun


class Engine(Protocol):
    """Learns what is left of a stream, and measures it as it is learned."""

    def prepare(self, job: StreamRun) -> AbstractContextManager[Callable[[], None]]:
        """All that it needs, while the block runs, and the function that learns once the stream has begun.

        The function returns when nothing is left that could become free; stopped by hand, or by an error, what is not
        learned waits again. Raises InputError where it could never learn this stream, before anything is written.
        """
        ...
