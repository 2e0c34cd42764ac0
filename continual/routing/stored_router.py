"""The router of what a registry holds."""

import logging
from collections.abc import Collection, Mapping

from continual.backbones.backbone import Backbone
from continual.features.stored_signatures import read_signature, signature_records
from continual.routing import AUTO, Router, RoutingStatistics, build_router, calibrate, collect_held_out, rule_names
from continual.routing.totals import AccumulatedMoments
from registry import Champion, Registry, StoredSignature
from registry.errors import BlobError

log = logging.getLogger(__name__)
MAX_RIDGE_CLASSES = (
    256  # tasks; a router in wide features reads some megabytes and takes some hundredths of a second for each
)


def load_router(
    registry: Registry, backbone: Backbone, champions: Mapping[str, Champion], *, kind: str = AUTO
) -> tuple[Router, Mapping[str, RoutingStatistics]] | None:
    """The router of those tasks that can be routed to, and the statistics that it was made of; None for none.

    champions: the delta that answers for each task; its own signature routes, whichever version serves meanwhile.

    Of very many tasks, and where an older release learned some, it is by the distance to class means in the last
    layer's features (`mahalanobis`), which every signature holds; settings are then chosen on rows of some tasks.
    """
    deltas = [champion.delta for champion in champions.values()]
    stored = {found.task: found for found in signature_records(registry, backbone, deltas=deltas)}
    some = sorted(stored.values(), key=lambda found: found.digest)[:MAX_RIDGE_CLASSES]  # whatever order they came in
    chosen = {found.task for found in some}
    parts = _read(registry, [found for task, found in stored.items() if task in chosen])
    if parts and len(parts) == len(stored):
        return build_router(parts, kind=kind), parts
    totals = AccumulatedMoments()
    for task, found in sorted(stored.items()):  # one after the other: of thousands they would not fit into memory
        if own := read_signature(registry, found):
            totals.add(task, own)
    if not totals.tasks:
        return None
    known = {task: part for task, part in parts.items() if task in totals.tasks}
    rows = collect_held_out([*totals.tasks], known, features="pooled")
    names = ("mahalanobis",) if kind == AUTO else rule_names(kind)
    return calibrate(totals, rows, features="pooled", names=names), known


def _read(registry: Registry, stored: Collection[StoredSignature]) -> dict[str, RoutingStatistics]:
    found = {}
    for own in stored:
        if own.routing is not None:
            try:
                found[own.task] = RoutingStatistics.from_bytes(registry.blobs.get(own.routing))
            except BlobError as error:
                log.warning("task %s is routed to by its signature alone: %s", own.task, error)
    return found
