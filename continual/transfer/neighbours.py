"""Which learned tasks are alike, from the registry's signatures."""

import logging
from collections.abc import Sequence

from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, MethodSettings, Subspace, load_delta
from continual.errors import DeltaError, TrainingError
from continual.features.pooling import encode
from continual.features.signature import Signature
from continual.features.stored_signatures import stored_signatures
from continual.features.tokens import tokenize
from continual.kinds import kind_of_delta
from continual.transfer.similarity import label_name_similarity as compare_labels
from continual.transfer.similarity import rank_by_similarity
from continual.transfer.warm_start import MAX_NEIGHBOURS, Neighbour
from registry import DataRecord, Registry
from registry.errors import BlobError
from tasks import TaskData

log = logging.getLogger(__name__)
SHORTLIST = 16  # tasks whose labels' names are compared
MAX_LABELS, MAX_LABEL_TOKENS = 64, 32  # of a task that are compared, and tokens of a name


def nearest_tasks(
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
    ranked = rank_by_similarity(
        own, {name: signatures[name] for name in champions if name in signatures and name != task}
    )
    copied_first = sorted(ranked, key=lambda pair: champions[pair[0]].settings != kind)
    names = _by_labels(backbone, registry, labels, [name for name, _ in copied_first[:SHORTLIST]])
    names.sort(key=lambda name: champions[name].settings != kind)
    found = []
    for name in names[:MAX_NEIGHBOURS]:
        champion = champions[name]
        try:
            delta = load_delta(registry.blobs.get(champion.digest))
            if is_readable(backbone, delta):
                found.append(Neighbour(champion.delta, delta))
        except (BlobError, DeltaError) as error:  # another task's damage must not stop this one
            log.warning("delta %s cannot be a start: %s", champion.delta, error)
    return found


def _by_labels(backbone: Backbone, registry: Registry, labels: Sequence[str], tasks: list[str]) -> list[str]:
    """The tasks whose labels have the names nearest to these first; of equals, and without labels, as they were."""
    if not labels:
        return tasks
    own, near = encode_labels(backbone, labels), {}
    for task in tasks:
        found = compare_labels(own, encode_labels(backbone, registry.task(task).labels))
        near[task] = -1.0 if found is None else found
    return sorted(tasks, key=lambda task: -near[task])


def encode_labels(backbone: Backbone, labels: Sequence[str]) -> Tensor | None:
    """The names of labels in frozen features [C, D], of many the first; None where there are none."""
    return encode(backbone, tokenize(backbone, labels[:MAX_LABELS], max_length=MAX_LABEL_TOKENS)) if labels else None


def previous_version(backbone: Backbone, registry: Registry, data: TaskData) -> tuple[Neighbour, ...]:
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
    return (Neighbour(last.name, delta, is_previous_version=True),) if is_readable(backbone, delta) else ()


def _held_out_alike(before: DataRecord, now: TaskData) -> bool:
    held_out = {"validation": now.validation.fingerprint, "test": now.test.fingerprint}
    return all(before.fingerprints[split] == fingerprint for split, fingerprint in held_out.items())


def subspace_deltas(
    backbone: Backbone, registry: Registry, settings: MethodSettings, *, task: str
) -> tuple[Neighbour, ...]:
    """The deltas of other tasks that span the subspace in which a method learns; none for a method without one.

    Raises LearnError where fewer than two such deltas have been learned.
    """
    if not isinstance(settings, Subspace):
        return ()
    kind, name = settings.base_settings.model_dump(mode="json"), settings.of.name
    found = [
        Neighbour(champion.delta, load_delta(registry.blobs.get(champion.digest)))
        for champion in registry.champions(backbone.fingerprint)
        if (champion.method, champion.settings) == (name, kind) and champion.task != task
    ]
    if len(found) < 2:
        raise TrainingError(
            f"a subspace is spanned by at least two learned deltas of method {name!r} with settings {kind}; the "
            f"registry holds {len(found)} of other tasks on backbone {backbone.name!r}. Learn such tasks first"
        )
    return tuple(found)


def load_neighbour(registry: Registry, name: str, *, again: bool = False) -> Neighbour:
    """A delta that an earlier learning came upon.

    Raises NotFound or BlobError where it is gone, DeltaError where it cannot be read.
    """
    return Neighbour(name, load_delta(registry.blobs.get(registry.delta(name).values)), is_previous_version=again)


def is_readable(backbone: Backbone, delta: Delta) -> bool:
    """Whether rows made ready for `backbone` can be read through a delta.

    Its edits must be those of the same layers, and it must add no more tokens than there is room for.
    """
    return (
        kind_of_delta(delta).generates == backbone.edits_decoder
        and delta.settings.added_tokens <= backbone.reserved_tokens
    )
