"""The story of a stream: every task in order of arrival, each learned once, whatever happens in between.

The registry holds the state. Whoever learns claims the next position that is free, learns its task, and registers task,
delta and scores in one unit of work; killed anywhere, it leaves the position to the next one, which goes on from its
last checkpoint. An engine says where that is done: here, or by workers of a cluster.
"""

from continual.backbones.backbone import Backbone
from continual.callbacks import NO_CALLBACKS, RunCallbacks
from continual.streams.engine import LOCAL_ENGINE, Engine
from continual.streams.job import StreamRun
from continual.streams.preflight import load_and_check, register_stream, require_trainable
from registry import Registry
from tasks import Stream
from tasks.errors import InputError

RETRIES = 1  # how often a task that failed is tried again


def run_stream(
    backbone: Backbone,
    registry: Registry,
    stream: Stream,
    *,
    watcher: RunCallbacks = NO_CALLBACKS,
    retries: int = RETRIES,
    engine: Engine = LOCAL_ENGINE,
) -> dict[str, str]:
    """Learn what the stream has not learned yet; the tasks that failed, by name, with what went wrong.

    retries: how often a task that failed is tried again, after the others.
    Raises InputError before anything is learned, as `check` does, where the stream was begun otherwise, or where the
    engine could not learn it.
    """
    if retries < 0:
        raise InputError(f"a task cannot be tried again {retries} times; retries are 0 or more")
    require_trainable(backbone)
    loaded = load_and_check(backbone, registry, stream)
    numbers = {task.name: number for number, task in enumerate(stream.tasks)}
    rows = {numbers[data.spec.name]: data for data in loaded}
    attempts = {position.number: position.attempts for position in registry.positions(stream.name)}
    most = {number: attempts.get(number, 0) + 1 + retries for number in rows}
    job = StreamRun(backbone, registry, stream, rows, most, watcher)
    with engine.prepare(job) as learn:
        register_stream(backbone, registry, stream, loaded)
        learn()
    return {
        position.task: position.error or ""
        for position in job.retry_on_disconnect(job.positions)
        if position.state == "failed"
    }
