"""What an engine is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

from continual.errors import EngineError
from continual.streams.evaluation import StreamEvaluator
from continual.streams.job import StreamRun
from continual.streams.worker_loop import learn_claimed_positions
from registry import current_process_id


class Engine(Protocol):
    """Learns what is left of a stream, and measures it as it is learned."""

    def prepare(self, job: StreamRun) -> AbstractContextManager[Callable[[], None]]:
        """All that it needs, while the block runs, and the function that learns once the stream has begun.

        The function returns when nothing is left that could become free; stopped by hand, or by an error, what is not
        learned waits again. Raises InputError where it could never learn this stream, before anything is written.
        """
        ...


class LocalEngine:
    """Needs nothing but this process."""

    @contextmanager
    def prepare(self, job: StreamRun) -> Iterator[Callable[[], None]]:
        yield partial(_learn, job)


def _learn(job: StreamRun) -> None:
    measuring = StreamEvaluator(job)
    measuring.evaluate_available()
    for learned in learn_claimed_positions(job, current_process_id()):
        measuring.add_learned(learned)
        measuring.evaluate_available()
    measuring.evaluate_available()


LOCAL_ENGINE: Engine = LocalEngine()


def resolve_engine(name: str, **options: Any) -> Engine:
    """The engine of this name; `ray` takes the options of `RayEngine`, None for its own choice.

    Raises EngineError for a name that is not known, an option that the engine lacks, and a package that is missing.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if name == "local":
        if given:
            raise EngineError(f"engine 'local' has no option {', '.join(given)}; leave it out, or give --engine ray")
        return LOCAL_ENGINE
    if name != "ray":
        raise EngineError(f"engine {name!r} is not known; allowed: local, ray")
    try:
        from continual.streams.ray.engine import RayEngine
    except ImportError as error:
        raise EngineError(
            f"engine 'ray' needs the extra `ray`; install it: pip install 'continual[ray]' ({error})"
        ) from error
    known = [option.name for option in fields(RayEngine)]
    if strange := given.keys() - known:
        raise EngineError(f"engine 'ray' has no option {', '.join(sorted(strange))}; allowed: {', '.join(known)}")
    return RayEngine(**given)
