"""Arrivals for tests: submitted tasks, and short forms of claiming, failing and finishing them."""

from pathlib import Path
from socket import gethostname

from registry import ARRIVAL_STREAM, Registry, claim_arrival, current_process_id
from tasks import Source, Stream, TaskSpec
from tests.helpers.registries import learn_in

DEAD = f"{gethostname()}:{2**22 + 1}:1"
FAR = "elsewhere:1:1"
HERE = current_process_id()


def task(name: str, *, seed: int = 0, backbone: str | None = None) -> Stream:
    source = Source(path="json", data_files={"train": f"{name}.jsonl"})
    spec = TaskSpec(name=name, source=source, text="text", label="label")
    return Stream(name=name, seed=seed, backbone=backbone, tasks=(spec,), folder=Path("/data"))


def take(registry: Registry, *, backbone: str = "tiny", holder: str = HERE) -> int | None:
    arrival = claim_arrival(registry, backbones=[backbone], holder=holder)
    return None if arrival is None else arrival.number


def fail(registry: Registry, number: int) -> None:
    with registry.unit_of_work() as unit:
        unit.mark_failed(ARRIVAL_STREAM, number, error="boom", holder=HERE)


def finish(registry: Registry, number: int, name: str, *, holder: str = HERE) -> str:
    with registry.unit_of_work() as unit:
        delta = learn_in(unit, registry, name)
        unit.mark_learned(ARRIVAL_STREAM, number, delta=delta, holder=holder)
        return delta


def states(registry: Registry) -> list[str]:
    return [row["state"] for row in registry.arrivals()]
