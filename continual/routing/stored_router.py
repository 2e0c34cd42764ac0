"""The router of what a registry holds: loaded where it was stored, else built from statistics and signatures."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from continual.backbones.backbone import Backbone
from continual.features.stored_signatures import read_signature, signature_records
from continual.routing import (
    AUTO,
    ROUTERS,
    FitStatistics,
    Router,
    RoutingStatistics,
    build_router,
    calibrate,
    collect_held_out,
    rule_names,
)
from continual.routing.moments import AccumulatedMoments
from continual.routing.router_serialization import router_from_bytes, router_to_bytes
from registry import Champion, Registry, StoredSignature
from registry.derived import derived_name, store_derived
from registry.errors import BlobError, RegistryError
from tasks.errors import InputError

log = logging.getLogger(__name__)
# Each task's routing statistics are some megabytes, and take some hundredths of a second.
MAX_TASKS_IN_RANDOM_FEATURES = 256
ROUTER_FORMAT = 1  # to be raised when the same statistics give another router, so that none of before is used


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
            parts, _ = _read_statistics(self.registry, [self.records[task]] if task in self.records else [])
            self.evidence[task] = parts[task].evidence if task in parts else None
        return self.evidence[task]


def load_router(
    registry: Registry, backbone: Backbone, champions: Mapping[str, Champion], *, kind: str = AUTO
) -> LoadedRouter | None:
    """Load the router of all tasks that have a signature, or build it and store it for other processes.

    Args:
        registry: Holds the signatures and their blobs, and the stored router.
        backbone: The backbone that the signatures were computed with.
        champions: The delta that answers for each task; that version's signature is used.
        kind: Name of a rule of `ROUTERS`, or `auto`.

    Returns:
        The router; None where no task has a signature. A task whose statistics hold numbers that are not finite is left
        out, with a warning that names it.
    """
    deltas = [champion.delta for champion in champions.values()]
    records = {record.task: record for record in signature_records(registry, backbone, deltas=deltas)}
    name = derived_name(backbone.fingerprint, records.values(), f"router-{kind}-{ROUTER_FORMAT}")
    is_storable = kind == AUTO or kind in ROUTERS.built_in
    if is_storable and (router := _read_router(registry, name)):
        return LoadedRouter(router, True, {}, _in_random_features(records), registry)
    loaded = _build_router(registry, records, kind)
    if is_storable and loaded and loaded.complete and (data := router_to_bytes(loaded.router)):
        try:
            store_derived(registry, name, data)
        except (RegistryError, InputError) as error:  # it may only be read: every process builds its own
            log.debug("the router is not stored: %s", error)
    return loaded


def _read_router(registry: Registry, name: str) -> Router | None:
    try:
        data = registry.blobs.get_derived(name)
        return None if data is None else router_from_bytes(data)
    except BlobError as error:
        log.debug("the stored router is not used: %s", error)
        return None


def _in_random_features(records: Mapping[str, StoredSignature]) -> dict[str, StoredSignature]:
    """Return the records whose routing statistics are read.

    They are chosen by digest, so that the choice does not depend on the order of arrival.
    """
    subset = {record.task for record in sorted(records.values(), key=lambda r: r.digest)[:MAX_TASKS_IN_RANDOM_FEATURES]}
    return {task: record for task, record in records.items() if task in subset}


def _build_router(registry: Registry, records: Mapping[str, StoredSignature], kind: str) -> LoadedRouter | None:
    """Build the router.

    Where there are very many tasks, or an older release learned some, the router compares distances to class means in
    the last layer's features (`mahalanobis`), which every signature holds; its settings are then chosen on held-out
    rows of the tasks that have routing statistics.
    """
    with_statistics = {t: record for t, record in _in_random_features(records).items() if record.routing is not None}
    parts, unusable = _read_statistics(registry, with_statistics.values())
    for task in sorted(unusable):  # one such task would make every sum, and so every route, not a number
        _warn_left_out(task)
    usable = {task: record for task, record in records.items() if task not in unusable}
    complete = parts.keys() == with_statistics.keys()
    evidence = dict.fromkeys(records) | {task: part.evidence for task, part in parts.items()}
    if parts and len(parts) == len(usable):
        return LoadedRouter(build_router(parts, kind=kind), complete, evidence, {}, registry)
    totals = AccumulatedMoments()
    for task, record in sorted(usable.items()):  # one after the other: thousands would not fit into memory
        signature = read_signature(registry, record)
        if signature and signature.is_finite:
            totals.add(task, signature)
        elif signature:
            _warn_left_out(task)
    if not totals.tasks:
        return None
    routable = {task: part for task, part in parts.items() if task in totals.tasks}
    rows = collect_held_out([*totals.tasks], routable, features="pooled")
    names = ("mahalanobis",) if kind == AUTO else rule_names(kind)
    router = calibrate(totals, rows, features="pooled", names=names)
    return LoadedRouter(router, complete and len(totals.tasks) == len(records), evidence, {}, registry)


def _warn_left_out(task: str) -> None:
    log.warning(
        "task %s is left out of routing: its statistics hold numbers that are not finite. Name it (--task), or "
        "learn it again; the others are routed to as before",
        task,
    )


def _read_statistics(
    registry: Registry, records: Collection[StoredSignature]
) -> tuple[dict[str, RoutingStatistics], set[str]]:
    """Return the statistics by task, and the tasks whose statistics hold numbers that are not finite."""
    unusable: set[str] = set()
    statistics = {}
    for record in records:
        if record.routing is not None:
            try:
                part = RoutingStatistics.from_bytes(registry.blobs.get(record.routing))
                if part.is_finite:
                    statistics[record.task] = part
                else:
                    unusable.add(record.task)
            except BlobError as error:
                log.warning("task %s is routed to by its signature alone: %s", record.task, error)
    return statistics, unusable
