"""Engines: where the tasks of a stream are learned, in this process or in the workers of a cluster."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, Protocol

from continual.errors import EngineError
from continual.streams.evaluation import StreamEvaluator
from continual.streams.stream_run import StreamRun
from continual.streams.worker_loop import learn_claimed_positions
from registry import current_process_id


class Engine(Protocol):
    """Learns the open positions of a stream, and evaluates the stream as it is learned."""

    def prepare(self, run: StreamRun) -> AbstractContextManager[Callable[[], None]]:
        """Acquire what the engine needs while the block runs, and yield the function that learns.

        The function returns when no position is left that could become free. When it is interrupted or fails, the
        positions that are not learned wait again.

        Raises:
            InputError: The engine could never learn this stream; nothing has been written.
        """
        ...


class LocalEngine:
    """Learns in this process, one position after the other."""

    @contextmanager
    def prepare(self, run: StreamRun) -> Iterator[Callable[[], None]]:
        """See `Engine.prepare`; nothing needs to be acquired."""
        yield partial(_learn, run)


def _learn(run: StreamRun) -> None:
    evaluator = StreamEvaluator(run)
    evaluator.evaluate_available()
    for learned_by_delta in learn_claimed_positions(run, current_process_id()):
        evaluator.add_learned(learned_by_delta)
        evaluator.evaluate_available()
    evaluator.evaluate_available()


LOCAL_ENGINE: Engine = LocalEngine()


def resolve_engine(name: str, **options: Any) -> Engine:
    """Return the engine of this name.

    Args:
        name: `local` or `ray`.
        options: Fields of `RayEngine`; None leaves a field at its default.

    Raises:
        EngineError: The name or an option is unknown, or a package that the engine needs is not installed.
    """
    settings = {option: value for option, value in options.items() if value is not None}
    if name == "local":
        if settings:
            raise EngineError(f"engine 'local' has no option {', '.join(settings)}; leave it out, or give --engine ray")
        return LOCAL_ENGINE
    if name != "ray":
        raise EngineError(f"engine {name!r} is not known; allowed: local, ray")
    try:
        from continual.streams.ray.engine import RayEngine
    except ImportError as error:
        raise EngineError(
            f"engine 'ray' needs the extra `ray`; install it: pip install 'continual-deltas[ray]' ({error})"
        ) from error
    allowed = [option.name for option in fields(RayEngine)]
    if unknown := settings.keys() - allowed:
        raise EngineError(f"engine 'ray' has no option {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    return RayEngine(**settings)
