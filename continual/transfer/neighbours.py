"""Load the deltas that a task may start from: similar tasks, its last version, a subspace's basis."""

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
from continual.transfer.similarity import label_name_similarity, rank_by_similarity
from continual.transfer.warm_start import MAX_NEIGHBOURS, Neighbour
from registry import DataRecord, Registry
from registry.errors import BlobError
from tasks import TaskData

log = logging.getLogger(__name__)
SHORTLIST = 16  # tasks whose labels' names are compared
MAX_LABELS, MAX_LABEL_TOKENS = 64, 32  # labels of a task that are compared, and tokens of a name


def nearest_tasks(
    backbone: Backbone,
    registry: Registry,
    signature: Signature,
    *,
    task: str,
    labels: Sequence[str],
    settings: MethodSettings,
) -> list[Neighbour]:
    """Return the learned tasks most similar to a new one, with their champions' deltas.

    Tasks learned by the same method and settings come first, since only their deltas can be copied. A shortlist is
    taken by signature, and ordered by the labels' names where the new task has labels.

    Args:
        backbone: The frozen backbone.
        registry: Holds the champions and their signatures.
        signature: Signature of the new task.
        task: Its name; earlier versions of the task are left out.
        labels: Its labels; empty for kinds without.
        settings: Method and settings that it is learned by.

    Returns:
        At most `MAX_NEIGHBOURS` tasks, without those whose deltas cannot be read.
    """
    champions = {champion.task: champion for champion in registry.champions(backbone.fingerprint)}
    signatures = stored_signatures(registry, backbone)
    stored_settings = settings.model_dump(mode="json")
    ranked = rank_by_similarity(
        signature, {name: signatures[name] for name in champions if name in signatures and name != task}
    )
    copyable_first = sorted(ranked, key=lambda pair: champions[pair[0]].settings != stored_settings)
    names = _sort_by_labels(backbone, registry, labels, [name for name, _ in copyable_first[:SHORTLIST]])
    names.sort(key=lambda name: champions[name].settings != stored_settings)
    neighbours = []
    for name in names[:MAX_NEIGHBOURS]:
        champion = champions[name]
        try:
            delta = load_delta(registry.blobs.get(champion.digest))
            if is_readable(backbone, delta):
                neighbours.append(Neighbour(champion.delta, delta))
        except (BlobError, DeltaError) as error:  # another task's damage must not stop this one
            log.warning("delta %s cannot be a start: %s", champion.delta, error)
    return neighbours


def _sort_by_labels(backbone: Backbone, registry: Registry, labels: Sequence[str], tasks: list[str]) -> list[str]:
    """Sort tasks by the similarity of their labels' names to `labels`; ties keep their order."""
    if not labels:
        return tasks
    target, similarities = encode_labels(backbone, labels), {}
    for task in tasks:
        similarity = label_name_similarity(target, encode_labels(backbone, registry.task(task).labels))
        similarities[task] = -1.0 if similarity is None else similarity
    return sorted(tasks, key=lambda task: -similarities[task])


def encode_labels(backbone: Backbone, labels: Sequence[str]) -> Tensor | None:
    """Encode the names of at most `MAX_LABELS` labels in frozen features [C, D]; None for no labels."""
    return encode(backbone, tokenize(backbone, labels[:MAX_LABELS], max_length=MAX_LABEL_TOKENS)) if labels else None


def previous_version(backbone: Backbone, registry: Registry, data: TaskData) -> tuple[Neighbour, ...]:
    """Return the last version of the task itself, preferably one that serves; empty for no usable one.

    A version drawn with another seed and other held-out rows cannot be a start: it may have been trained on rows that
    are held out now. Nor can one whose values are damaged.
    """
    last = registry.last_version(data.spec.name, backbone.fingerprint)
    if last is None or (last.data and last.data.seed != data.seed and not _same_held_out_rows(last.data, data)):
        return ()
    try:
        delta = load_delta(registry.blobs.get(last.values))
    except (BlobError, DeltaError) as error:
        log.warning("delta %s cannot be a start: %s", last.name, error)
        return ()
    return (Neighbour(last.name, delta, is_previous_version=True),) if is_readable(backbone, delta) else ()


def _same_held_out_rows(previous: DataRecord, current: TaskData) -> bool:
    fingerprints = {"validation": current.validation.fingerprint, "test": current.test.fingerprint}
    return all(previous.fingerprints[split] == fingerprint for split, fingerprint in fingerprints.items())


def subspace_deltas(
    backbone: Backbone, registry: Registry, settings: MethodSettings, *, task: str
) -> tuple[Neighbour, ...]:
    """Return the deltas of other tasks that span a method's subspace; empty for a method without one.

    Raises:
        TrainingError: Fewer than two such deltas have been learned.
    """
    if not isinstance(settings, Subspace):
        return ()
    base_settings, method = settings.base_settings.model_dump(mode="json"), settings.of.name
    basis = [
        Neighbour(champion.delta, load_delta(registry.blobs.get(champion.digest)))
        for champion in registry.champions(backbone.fingerprint)
        if (champion.method, champion.settings) == (method, base_settings) and champion.task != task
    ]
    if len(basis) < 2:
        raise TrainingError(
            f"a subspace is spanned by at least two learned deltas of method {method!r} with settings {base_settings}; "
            f"the registry holds {len(basis)} of other tasks on backbone {backbone.name!r}. Learn such tasks first"
        )
    return tuple(basis)


def load_neighbour(registry: Registry, name: str, *, is_previous_version: bool = False) -> Neighbour:
    """Load a delta by the name that a checkpoint recorded.

    Raises:
        NotFound: The delta is no longer registered.
        BlobError: Its values are gone.
        DeltaError: Its values cannot be read.
    """
    delta = load_delta(registry.blobs.get(registry.delta(name).values))
    return Neighbour(name, delta, is_previous_version=is_previous_version)


def is_readable(backbone: Backbone, delta: Delta) -> bool:
    """Return whether rows prepared for `backbone` can be forwarded through a delta.

    Its edits must be in the same layers, and it must add no more tokens than the backbone has reserved.
    """
    return (
        kind_of_delta(delta).generates == backbone.generates and delta.settings.added_tokens <= backbone.reserved_tokens
    )
