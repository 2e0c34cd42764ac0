"""Run a stream: learn every task once, in order of arrival, and survive failures in between.

The registry holds the state. A worker claims the next free position, learns its task, and registers task, delta and
scores in one unit of work; killed anywhere, it leaves the position to the next worker, which resumes from its last
checkpoint. An engine decides where that happens: in this process, or in the workers of a cluster.
"""

from continual.backbones.backbone import Backbone
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.streams.engine import LOCAL_ENGINE, Engine
from continual.streams.preflight import load_and_check, register_stream, require_trainable
from continual.streams.stream_run import StreamRun
from registry import Registry
from tasks import Stream
from tasks.errors import InputError

RETRIES = 1  # further attempts at a task that failed


def run_stream(
    backbone: Backbone,
    registry: Registry,
    stream: Stream,
    *,
    callbacks: RunCallbacks = NO_CALLBACKS,
    retries: int = RETRIES,
    engine: Engine = LOCAL_ENGINE,
) -> dict[str, str]:
    """Learn the tasks of a stream that are not learned yet; return the errors of failed tasks by name.

    Args:
        backbone: The frozen backbone.
        registry: Where the stream's progress and deltas are stored.
        stream: The tasks in order of arrival.
        callbacks: Called as learning goes on.
        retries: Further attempts at a task that failed, made after the other tasks.
        engine: Where the tasks are learned.

    Raises:
        InputError: Before anything is learned: a check of `load_and_check` fails, the stream was begun with other
            settings, `retries` is negative, or the engine cannot run the stream.
    """
    if retries < 0:
        raise InputError(f"a task cannot be tried again {retries} times; retries are 0 or more")
    require_trainable(backbone)
    tasks = load_and_check(backbone, registry, stream)
    numbers = {task.name: number for number, task in enumerate(stream.tasks)}
    rows_by_position = {numbers[data.spec.name]: data for data in tasks}
    attempts = {position.number: position.attempts for position in registry.positions(stream.name)}
    max_attempts = {number: attempts.get(number, 0) + 1 + retries for number in rows_by_position}
    run = StreamRun(backbone, registry, stream, rows_by_position, max_attempts, callbacks)
    with engine.prepare(run) as learn:
        register_stream(backbone, registry, stream, tasks)
        learn()
    return {
        position.task: position.error or ""
        for position in run.retry_on_disconnect(run.positions)
        if position.state == "failed"
    }
