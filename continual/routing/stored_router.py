"""The router of what a registry holds: loaded where it was stored, else built from statistics and signatures."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from continual.backbones.backbone import Backbone
from continual.features.stored_signatures import read_signature, signature_records
from continual.routing import AUTO, ROUTERS, FitStatistics, Router, RoutingStatistics, calibrate, rule_names
from continual.routing.held_out import TaskHeldOut, join_held_out, rows_per_task, task_held_out
from continual.routing.moments import AccumulatedMoments
from continual.routing.router import build_from_sums
from continual.routing.router_serialization import router_from_bytes, router_to_bytes
from continual.routing.router_sums import RouterSums
from registry import Champion, Registry, StoredSignature
from registry.derived import derived_name, store_derived
from registry.errors import BlobError, RegistryError
from tasks.errors import InputError

log = logging.getLogger(__name__)
ROUTER_FORMAT = 2  # to be raised when the same statistics give another router, so that none of before is used
SUMS = "sums-1"  # with the version of their format
MIN_TASKS_OF_SUMS = 32  # with fewer, summing anew takes no longer than reading the sums


@dataclass(frozen=True)
class LoadedRouter:
    """A router, and what the deltas of its tasks need to give an opinion.

    Attributes:
        router: The router.
        complete: False where a task's statistics could not be used, which may be mended later.
        evidence: Fit statistics by task, as far as they are read; None for a task without any.
        records: Where the fit statistics of the other tasks are read from.
        registry: Holds their blobs.
    """

    router: Router
    complete: bool
    evidence: dict[str, FitStatistics | None]
    records: Mapping[str, StoredSignature]
    registry: Registry

    def fit_statistics(self, task: str) -> FitStatistics | None:
        """Return the statistics of a task in its delta's features, read when first needed; None without any."""
        if task not in self.evidence:
            part = _read_statistics(self.registry, self.records[task]) if task in self.records else None
            self.evidence[task] = part.evidence if part else None
        return self.evidence[task]


def load_router(
    registry: Registry, backbone: Backbone, champions: Mapping[str, Champion], *, kind: str = AUTO
) -> LoadedRouter | None:
    """Load the router of all tasks that have a signature, or build it and store it for other processes.

    A stored router of other tasks is not used; the sums that it was solved from are brought up to date by the
    statistics of the tasks that were added and removed since.

    Args:
        registry: Holds the signatures and their blobs, and the stored router.
        backbone: The backbone that the signatures were computed with.
        champions: The delta that answers for each task; that version's signature is used. Tasks that are not routed
            are left out.
        kind: Name of a rule of `ROUTERS`, or `auto`.

    Returns:
        The router; None where no task has a signature. A task whose statistics hold numbers that are not finite is left
        out, with a warning that names it.
    """
    deltas = [champion.delta for champion in champions.values()]
    all_records = signature_records(registry, backbone, deltas=deltas)
    records = {record.task: record for record in all_records if champions[record.task].is_routed}
    if not records:
        return None
    choice = _choice(all_records, records)
    name = derived_name(backbone.fingerprint, all_records, f"router-{kind}-{ROUTER_FORMAT}{choice}")
    is_storable = kind == AUTO or kind in ROUTERS.built_in
    if is_storable and (data := _read_derived(registry, name)) and (router := _router(data)):
        return LoadedRouter(router, True, {}, records, registry)
    loaded, sums = _build_router(registry, records, kind, sums=_find_sums(registry, backbone.fingerprint))
    if is_storable and loaded and loaded.complete and (data := router_to_bytes(loaded.router)):
        derived = {name: data}
        if sums and len(sums.sources) >= MIN_TASKS_OF_SUMS:
            derived[derived_name(backbone.fingerprint, all_records, f"{SUMS}{choice}")] = sums.to_bytes()
        try:
            for file, content in derived.items():
                store_derived(registry, file, content)
        except (RegistryError, InputError) as error:  # it may only be read: every process builds its own
            log.debug("the router is not stored: %s", error)
    return loaded


def _choice(records: Collection[StoredSignature], routed: Mapping[str, StoredSignature]) -> str:
    """Return a suffix that tells routers of different tasks among the same champions apart."""
    if len(routed) == len(records):
        return ""
    return f"-{sha256(json.dumps(sorted(routed)).encode()).hexdigest()[:16]}"


def _read_derived(registry: Registry, name: str) -> bytes | None:
    try:
        return registry.blobs.get_derived(name)
    except BlobError as error:
        log.debug("%s is not used: %s", name, error)
        return None


def _router(data: bytes) -> Router | None:
    try:
        return router_from_bytes(data)
    except BlobError as error:
        log.debug("the stored router is not used: %s", error)
        return None


def _find_sums(registry: Registry, backbone: str) -> RouterSums | None:
    """Return the sums of a router on a backbone that were stored last, of whichever tasks; None without any."""
    try:
        files = [file for file in registry.blobs.iterate_derived() if file.name.startswith(f"{backbone}/")]
        sums = [file for file in files if file.name.partition(".")[2].startswith(SUMS)]
        if not sums or not (data := registry.blobs.get_derived(max(sums, key=lambda file: file.put_at).name)):
            return None
        return RouterSums.from_bytes(data)
    except BlobError as error:
        log.debug("the stored sums are not used: %s", error)
        return None


def _build_router(
    registry: Registry, records: Mapping[str, StoredSignature], kind: str, *, sums: RouterSums | None
) -> tuple[LoadedRouter | None, RouterSums | None]:
    """Build the router, and return what it was built from.

    Where an older release learned some of the tasks, the router compares distances to class means in the last layer's
    features (`mahalanobis`), which every signature holds; its settings are then chosen on held-out rows of the tasks
    that have routing statistics.
    """
    sources = {task: record.routing for task, record in records.items() if record.routing is not None}
    if len(sources) == len(records):
        updated, unusable = _update_sums(registry, sources, sums)
        for task in sorted(unusable):  # one such task would make every sum, and so every route, not a number
            _warn_left_out(task)
        if updated and updated.sources.keys() | unusable == records.keys():
            if not updated.sources:
                return None, None
            router = build_from_sums(updated.totals, updated.held_out, kind=kind)
            return LoadedRouter(router, True, {}, records, registry), updated
    return _build_from_signatures(registry, records, kind), None


def _update_sums(
    registry: Registry, sources: Mapping[str, str], sums: RouterSums | None
) -> tuple[RouterSums | None, set[str]]:
    """Return the sums over the tasks of `sources`, and the tasks whose statistics hold numbers that are not finite.

    None where the statistics of a task cannot be read.
    """
    if sums is None or not sums.can_become(sources) or not _remove_others(registry, sums, sources):
        sums = RouterSums()
    unusable = set[str]()
    for task in sorted(
        sources.keys() - sums.sources.keys()
    ):  # one after the other: thousands would not fit into memory
        try:
            part = RoutingStatistics.from_bytes(registry.blobs.get(sources[task]))
        except BlobError as error:
            log.warning("task %s is routed to by its signature alone: %s", task, error)
            return None, unusable
        if part.is_finite:
            sums.add(task, sources[task], part, num_tasks=len(sources))
        else:
            unusable.add(task)
    return sums, unusable


def _remove_others(registry: Registry, sums: RouterSums, sources: Mapping[str, str]) -> bool:
    """Remove the tasks that are not of `sources`; False where the statistics of one are gone."""
    for task, source in [item for item in sums.sources.items() if item not in sources.items()]:
        try:
            sums.remove(task, RoutingStatistics.from_bytes(registry.blobs.get(source)))
        except BlobError:
            return False
    return True


def _build_from_signatures(
    registry: Registry, records: Mapping[str, StoredSignature], kind: str
) -> LoadedRouter | None:
    totals, held_out, complete = AccumulatedMoments(), dict[str, TaskHeldOut](), True
    for task, record in sorted(records.items()):
        part = _read_statistics(registry, record) if record.routing else None
        signature = read_signature(registry, record)
        complete &= signature is not None and (part is not None or record.routing is None)
        if signature and signature.is_finite and (part is None or part.is_finite):
            totals.add(task, signature)
            if part:
                held_out[task] = task_held_out(part, features="pooled", count=rows_per_task(len(records)))
        elif signature:
            _warn_left_out(task)
    if not totals.tasks:
        return None
    rows = join_held_out([*totals.tasks], held_out)
    names = ("mahalanobis",) if kind == AUTO else rule_names(kind)
    return LoadedRouter(calibrate(totals, rows, features="pooled", names=names), complete, {}, records, registry)


def _warn_left_out(task: str) -> None:
    log.warning(
        "task %s is left out of routing: its statistics hold numbers that are not finite. Name it (--task), or "
        "learn it again; the others are routed to as before",
        task,
    )


def _read_statistics(registry: Registry, record: StoredSignature) -> RoutingStatistics | None:
    """Return the routing statistics of a task; None where there are none, or they cannot be read."""
    try:
        return RoutingStatistics.from_bytes(registry.blobs.get(record.routing)) if record.routing else None
    except BlobError as error:
        log.warning("task %s is routed to by its signature alone: %s", record.task, error)
        return None
