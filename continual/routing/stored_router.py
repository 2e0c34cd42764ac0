"""Build a router from the routing statistics and signatures that a registry holds."""

import logging
from collections.abc import Collection, Mapping

from continual.backbones.backbone import Backbone
from continual.features.stored_signatures import read_signature, signature_records
from continual.routing import AUTO, Router, RoutingStatistics, build_router, calibrate, collect_held_out, rule_names
from continual.routing.moments import AccumulatedMoments
from registry import Champion, Registry, StoredSignature
from registry.errors import BlobError

log = logging.getLogger(__name__)
# Each task's routing statistics are some megabytes, and take some hundredths of a second.
MAX_TASKS_IN_RANDOM_FEATURES = 256


def load_router(
    registry: Registry, backbone: Backbone, champions: Mapping[str, Champion], *, kind: str = AUTO
) -> tuple[Router, Mapping[str, RoutingStatistics]] | None:
    """Build the router of all tasks that have a signature.

    Where there are very many tasks, or an older release learned some, the router compares distances to class means in
    the last layer's features (`mahalanobis`), which every signature holds; its settings are then chosen on held-out
    rows of the tasks that have routing statistics.

    Args:
        registry: Holds the signatures and their blobs.
        backbone: The backbone that the signatures were computed with.
        champions: The delta that answers for each task; that version's signature is used.
        kind: Name of a rule of `ROUTERS`, or `auto`.

    Returns:
        The router and the routing statistics it was built from; None where no task has a signature. A task whose
        statistics hold numbers that are not finite is left out, with a warning that names it.
    """
    deltas = [champion.delta for champion in champions.values()]
    stored = {record.task: record for record in signature_records(registry, backbone, deltas=deltas)}
    # Chosen by digest, so that the choice does not depend on the order of arrival.
    subset = sorted(stored.values(), key=lambda record: record.digest)[:MAX_TASKS_IN_RANDOM_FEATURES]
    subset_tasks = {record.task for record in subset}
    parts, unusable = _read_statistics(registry, [record for task, record in stored.items() if task in subset_tasks])
    for task in sorted(unusable):  # one such task would make every sum, and so every route, not a number
        del stored[task]
        _warn_left_out(task)
    if parts and len(parts) == len(stored):
        return build_router(parts, kind=kind), parts
    totals = AccumulatedMoments()
    for task, record in sorted(stored.items()):  # one after the other: thousands would not fit into memory
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
    return calibrate(totals, rows, features="pooled", names=names), routable


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
