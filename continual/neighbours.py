"""Which learned tasks are alike, from the registry's signatures."""

import logging
from collections.abc import Collection, Sequence

from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, MethodSettings, Subspace, load_delta
from continual.errors import BackboneError, BlobError, DeltaError, LearnError
from continual.features import features, tokenize
from continual.kinds import kind_of_delta
from continual.signature import Signature
from continual.similarity import labels as compare_labels
from continual.similarity import nearest
from continual.warmstart import NEIGHBOURS_TRIED, Neighbour
from registry import BackboneRecord, DataRecord, Registry, StoredSignature
from tasks import TaskData

log = logging.getLogger(__name__)
SHORTLIST = 16  # tasks whose labels' names are compared
MOST_LABELS, LABEL_LENGTH = 64, 32  # of a task that are compared, and tokens of a name


def stored_signatures(registry: Registry, backbone: Backbone | BackboneRecord) -> dict[str, Signature]:
    """The signature of every task in a backbone's frozen features.

    Raises BackboneError where a signature was taken of features that were pooled otherwise.
    """
    found = {stored.task: read_signature(registry, stored) for stored in named_signatures(registry, backbone)}
    return {task: own for task, own in found.items() if own}


def read_signature(registry: Registry, stored: StoredSignature) -> Signature | None:
    """A signature, or None and a warning where it cannot be read."""
    try:
        return Signature.from_bytes(registry.blobs.get(stored.digest))
    except BlobError as error:
        log.warning("task %s cannot be routed to or compared with: %s", stored.task, error)
        return None


def named_signatures(
    registry: Registry, backbone: Backbone | BackboneRecord, *, deltas: Collection[str] | None = None
) -> tuple[StoredSignature, ...]:
    """Where the signatures of the tasks on a backbone lie. Raises BackboneError as `stored_signatures` does.

    deltas: those whose signatures are wanted, where they are not the champions; one without is left out.
    """
    found = registry.signatures(backbone.fingerprint, deltas=deltas)
    for stored in found:
        if stored.pooling != backbone.pooling:
            raise BackboneError(
                f"the signature of task {stored.task!r} is of {stored.pooling}-pooled features, and backbone "
                f"{backbone.name!r} pools by {backbone.pooling}; load it as it was, or use another home"
            )
    return found


def nearest_learned(
    backbone: Backbone,
    registry: Registry,
    own: Signature,
    *,
    task: str,
    labels: Sequence[str],
    settings: MethodSettings,
) -> list[Neighbour]:
    """The learned tasks other than `task` that are most like it, with their champions' deltas.

    Its signature `own` says which are looked at, and of those the names of its labels, where it has any, which come
    first; but before all others come those learned by the same method and settings, since only they can be copied.
    """
    champions = {champion.task: champion for champion in registry.champions(backbone.fingerprint)}
    signatures = stored_signatures(registry, backbone)
    kind = settings.model_dump(mode="json")
    ranked = nearest(own, {name: signatures[name] for name in champions if name in signatures and name != task})
    copied_first = sorted(ranked, key=lambda pair: champions[pair[0]].settings != kind)
    names = _by_labels(backbone, registry, labels, [name for name, _ in copied_first[:SHORTLIST]])
    names.sort(key=lambda name: champions[name].settings != kind)
    found = []
    for name in names[:NEIGHBOURS_TRIED]:
        champion = champions[name]
        try:
            delta = load_delta(registry.blobs.get(champion.digest))
            if takes(backbone, delta):
                found.append(Neighbour(champion.delta, delta))
        except (BlobError, DeltaError) as error:  # another task's damage must not stop this one
            log.warning("delta %s cannot be a start: %s", champion.delta, error)
    return found


def _by_labels(backbone: Backbone, registry: Registry, labels: Sequence[str], tasks: list[str]) -> list[str]:
    """The tasks whose labels have the names nearest to these first; of equals, and without labels, as they were."""
    if not labels:
        return tasks
    own, near = label_vectors(backbone, labels), {}
    for task in tasks:
        found = compare_labels(own, label_vectors(backbone, registry.task(task).labels))
        near[task] = -1.0 if found is None else found
    return sorted(tasks, key=lambda task: -near[task])


def label_vectors(backbone: Backbone, labels: Sequence[str]) -> Tensor | None:
    """The names of labels in frozen features [C, D], of many the first; None where there are none."""
    return features(backbone, tokenize(backbone, labels[:MOST_LABELS], max_length=LABEL_LENGTH)) if labels else None


def learned_before(backbone: Backbone, registry: Registry, data: TaskData) -> tuple[Neighbour, ...]:
    """The last version of the task itself, of those that serve or else of all; nothing where it cannot be a start.

    Neither can one that may have been trained on rows that are held out now, since another seed draws others.
    """
    last = registry.last_version(data.spec.name, backbone.fingerprint)
    if last is None or (last.data and last.data.seed != data.seed and not _held_out_alike(last.data, data)):
        return ()
    try:
        delta = load_delta(registry.blobs.get(last.values))
    except (BlobError, DeltaError) as error:
        log.warning("delta %s cannot be a start: %s", last.name, error)
        return ()
    return (Neighbour(last.name, delta, again=True),) if takes(backbone, delta) else ()


def _held_out_alike(before: DataRecord, now: TaskData) -> bool:
    held_out = {"validation": now.validation.fingerprint, "test": now.test.fingerprint}
    return all(before.fingerprints[split] == fingerprint for split, fingerprint in held_out.items())


def spanning(backbone: Backbone, registry: Registry, settings: MethodSettings, *, task: str) -> tuple[Neighbour, ...]:
    """The deltas of other tasks that span the subspace in which a method learns; none for a method without one.

    Raises LearnError where fewer than two such deltas have been learned.
    """
    if not isinstance(settings, Subspace):
        return ()
    kind, name = settings.spanned_by.model_dump(mode="json"), settings.of.name
    found = [
        Neighbour(champion.delta, load_delta(registry.blobs.get(champion.digest)))
        for champion in registry.champions(backbone.fingerprint)
        if (champion.method, champion.settings) == (name, kind) and champion.task != task
    ]
    if len(found) < 2:
        raise LearnError(
            f"a subspace is spanned by at least two learned deltas of method {name!r} with settings {kind}; the "
            f"registry holds {len(found)} of other tasks on backbone {backbone.name!r}. Learn such tasks first"
        )
    return tuple(found)


def recalled(registry: Registry, name: str, *, again: bool = False) -> Neighbour:
    """A delta that an earlier learning came upon.

    Raises NotFound or BlobError where it is gone, DeltaError where it cannot be read.
    """
    return Neighbour(name, load_delta(registry.blobs.get(registry.delta(name).values)), again=again)


def takes(backbone: Backbone, delta: Delta) -> bool:
    """Whether rows made ready for `backbone` can be read through a delta.

    Its edits must be those of the same layers, and it must add no more tokens than there is room for.
    """
    return kind_of_delta(delta).generates == backbone.generates and delta.settings.added_tokens <= backbone.reserved
