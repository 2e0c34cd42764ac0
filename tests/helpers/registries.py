"""Small registries for tests, and what child processes run in them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registry import (
    BackboneRecord,
    DeltaRecord,
    Parent,
    Registry,
    Score,
    SignatureRecord,
    TaskRecord,
    UnitOfWork,
    claim_message,
    claim_next,
    current_process_id,
    delete_sent,
)
from registry.records import require_digest
from tests.helpers.claims import claim_position
from tests.helpers.databases import registry_url

BACKBONE = BackboneRecord(fingerprint="f00d", name="tiny", family="bert", hidden_size=8, parameters=100, pooling="mean")


def digest_of(registry: Registry, delta: str) -> str:
    """Return the digest of a delta that was not purged."""
    return require_digest(registry.delta(delta).digest, delta)


def make_registry(folder: Path) -> Registry:
    """Open a registry in `folder` with one backbone."""
    registry = Registry.open(registry_url(folder), f"{folder}/home/blobs")
    with registry.unit_of_work() as unit:
        unit.add_backbone(BACKBONE)
    return registry


def task_record(name: str, **changed: Any) -> TaskRecord:
    values: dict[str, Any] = {"kind": "classification", "metric": "accuracy", "labels": ("no", "yes"), "spec": {}}
    return TaskRecord(name=name, **(values | {"fingerprints": {"train": "a"}, "rows": {"train": 4}} | changed))


def delta_record(registry: Registry, task: str, **changed: Any) -> DeltaRecord:
    values: dict[str, Any] = {"method": "lora", "settings": {"rank": 2}, "bytes": 6, "parameters": 10, "share": 0.1}
    values |= {
        "budget": {"epochs": 1, "max_length": 16},
        "seed": 0,
        "labels": ("no", "yes"),
        "versions": {"torch": "2"},
        "warm_start": "scratch",
    }
    values |= {"seconds": 1.0, "examples_per_second": 4.0}
    values |= {"digest": changed.get("digest") or registry.blobs.put(task.encode())}
    return DeltaRecord(task=task, backbone=BACKBONE.fingerprint, **(values | changed))


def accuracy(value: float, **changed: Any) -> Score:
    values: dict[str, Any] = {"split": "test", "metric": "accuracy", "rows": 10}
    return Score(value=value, **(values | changed))


def learn_in(
    unit: UnitOfWork,
    registry: Registry,
    task: str,
    *,
    score: float = 0.5,
    parents: Sequence[Parent] = (),
    **changed: Any,
) -> str:
    """Register `task` and a delta that scores `score` on validation and test rows; its name."""
    unit.add_task(task_record(task))
    return unit.add_delta(
        delta_record(registry, task, **changed),
        parents=parents,
        scores=[accuracy(score), accuracy(score, split="validation")],
        signature=SignatureRecord(digest=registry.blobs.put(b"signature"), rows=4, pooling="mean"),
    )


def learn(registry: Registry, task: str, *, score: float = 0.5, parents: Sequence[Parent] = (), **changed: Any) -> str:
    with registry.unit_of_work() as unit:
        return learn_in(unit, registry, task, score=score, parents=parents, **changed)


def begin(registry: Registry, *tasks: str, name: str = "core") -> None:
    with registry.unit_of_work() as unit:
        unit.begin_stream(name, backbone="f00d", spec={"name": name}, entries=[(task, f"r-{task}") for task in tasks])


def learn_stream(registry: Registry, *tasks: str) -> None:
    """Register a stream whose tasks are all learned."""
    begin(registry, *tasks)
    for number, task in enumerate(tasks):
        with registry.unit_of_work() as unit:
            unit.mark_learned("core", number, delta=learn_in(unit, registry, task))


def die_in_a_unit(folder: Path) -> None:
    """Exit as if killed when a task and a delta are flushed but not committed."""
    registry = make_registry(folder)
    with registry.unit_of_work() as unit:
        learn_in(unit, registry, "sst2")
        unit.session.flush()
        os._exit(9)


def claim_and_stay(folder: Path, start: Any, won: Any) -> None:
    """Wait for the start, claim a position, report the outcome, and live until the others have claimed too."""
    with make_registry(folder) as registry:
        start.wait()
        won.put(claim_position(registry, "core", number=0, holder=current_process_id()))
        start.wait()


def claim_all(folder: Path, start: Any, won: Any, count: int) -> None:
    """Claim positions concurrently with others until none is free, and report their numbers."""
    with make_registry(folder) as registry:
        start.wait()
        among = dict.fromkeys(range(count), 1)
        claimed = iter(lambda: claim_next(registry, "core", max_attempts=among, holder=current_process_id()), None)
        won.put(list(claimed))
        start.wait()


def claim_and_die(folder: Path) -> None:
    """Claim the first position and exit as if killed."""
    with make_registry(folder) as registry:
        os._exit(0 if claim_position(registry, "core", number=0, holder=current_process_id()) else 1)


def take_and_die(folder: Path) -> None:
    """Claim the first message and exit as if killed."""
    with make_registry(folder) as registry:
        os._exit(0 if claim_message(registry, current_process_id()) else 1)


def empty_the_outbox(folder: Path, start: Any, taken: Any) -> None:
    """Wait for the start, claim and delete messages until none is left, and report their subjects."""
    subjects = []
    with make_registry(folder) as registry:
        start.wait()
        while pending := claim_message(registry, current_process_id()):
            with registry.unit_of_work() as unit:
                assert delete_sent(unit, pending)
            subjects.append(pending.subject)
    taken.put(subjects)


def open_together(folder: Path, start: Any) -> None:
    """Create a registry at the same moment as other processes."""
    start.wait()
    make_registry(folder).close()
