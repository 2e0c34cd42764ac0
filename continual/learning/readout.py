"""Choose where the head of a task reads: which pooling of the states, behind how many layers.

    (pooling, layers) = argmin of the cross-validated loss of the closed-form head on train and validation rows

Only a causal backbone leaves a choice: the state of a text's last token has seen the whole text, the states of its
middle layers say more about the text than those of the last, which predict the next token, and which is best differs
from task to task. An encoder keeps the pooling that it was trained with. The vectors come from the pass that computes
the router's features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, cat

from continual.backbones.backbone import Backbone
from continual.backbones.readout import Readout
from continual.features.random_features import FrozenFeatures, candidate_readouts, frozen_features
from continual.kinds import ForwardContext, PooledKind, PreparedRows
from continual.learning.prepared import PreparedTask
from continual.training.frozen_layers import count_unedited_layers
from continual.training.method_search import candidate_settings
from tasks import LabelledTexts, Method, TaskSpec
from tasks.readout_choice import ReadoutChoice
from tasks.rows import sample

MAX_ROWS = 512  # train rows, and validation rows, that the choice is made on

Views = tuple[ForwardContext[Any], ForwardContext[Any], ForwardContext[Any]]


def views_at_best_readout(task: PreparedTask) -> Views:
    """Return the train, validation and test rows through the frozen backbone, read where their head is best.

    Args:
        task: The prepared task.

    Returns:
        `PreparedTask.frozen_views`, with the readout that was chosen on train and validation rows.
    """
    views, candidates = task.frozen_views, allowed_readouts(task.backbone, task.method)
    if task.data.spec.readout:
        return _at(views, _readout_of(task.data.spec.readout), (None,) * len(views))
    if not isinstance(task.kind, PooledKind) or len(candidates) < 2:
        return views
    splits = zip(views, (task.data.train, task.data.validation), strict=False)
    parts = [_read(task, view, rows, candidates) for view, rows in splits]
    chosen = choose_readout(task.kind, candidates, parts)
    return _at(views, chosen, [*(_keep(part.features, chosen) if part.is_whole else None for part in parts), None])


def allowed_readouts(backbone: Backbone, method: Method) -> tuple[Readout, ...]:
    """Return the readouts of a backbone behind at least one layer that a method changes, or every candidate of it."""
    unedited = _unedited_layers(backbone, method)
    return tuple(
        readout for readout in candidate_readouts(backbone) if (readout.layers or backbone.num_layers) > unedited
    )


def readout_obstacle(backbone: Backbone, spec: TaskSpec) -> str | None:
    """Return why a task's head cannot read where its file says, and what to do; None where it can."""
    assert spec.method  # what `Stream.resolved` fills in
    if spec.readout is None:
        return None
    if spec.template:
        return "readout: a task that is answered by its template has no head; drop readout or template"
    layers, unedited = spec.readout.layers or backbone.num_layers, _unedited_layers(backbone, spec.method)
    if layers > backbone.num_layers:
        return f"readout.layers: {layers}, and backbone {backbone.name!r} has {backbone.num_layers}; give at most those"
    if layers <= unedited:
        return (
            f"readout.layers: {layers}, and the method {spec.method.name!r} changes nothing in the lowest {unedited}; "
            "read more layers, or use a method that changes lower ones"
        )
    return None


def _unedited_layers(backbone: Backbone, method: Method) -> int:
    """The number of layers below the lowest one that each candidate of a method changes; 0 for a head alone."""
    methods = [settings for settings in candidate_settings(method) if settings.edits()]
    return max((count_unedited_layers(backbone, settings) for settings in methods), default=0)


def _readout_of(choice: ReadoutChoice) -> Readout:
    return Readout(choice.pooling, choice.layers)


def _at(views: Views, readout: Readout | None, frozen: Sequence[FrozenFeatures | None]) -> Views:
    """The views with the readout, and with their features where these were computed."""
    train, held_out, test = (
        replace(view, chosen_readout=readout, cached_frozen=features)
        for view, features in zip(views, frozen, strict=True)
    )
    return train, held_out, test


@dataclass(frozen=True)
class RowsWithFeatures:
    """Prepared rows with their features at every candidate.

    Attributes:
        rows: The N prepared rows.
        features: Their frozen features, with the vectors [N, D] of every readout.
        is_whole: Whether they are all rows of their split, not a sample.
    """

    rows: PreparedRows
    features: FrozenFeatures
    is_whole: bool


def choose_readout(
    kind: PooledKind[Any], candidates: Sequence[Readout], parts: Sequence[RowsWithFeatures]
) -> Readout | None:
    """Return the candidate of the least loss; None where the kind names none.

    Args:
        kind: The kind of the task.
        candidates: The readouts.
        parts: The rows to choose on.
    """
    losses: dict[Readout, float] = {}
    for readout in candidates:
        vectors: Tensor = cat([part.features.readouts[readout] for part in parts])
        loss = kind.readout_loss(vectors, [part.rows for part in parts])
        if loss is None:
            return None
        losses[readout] = loss
    return min(losses, key=losses.__getitem__)


def _read(
    task: PreparedTask, view: ForwardContext[Any], rows: LabelledTexts, candidates: Sequence[Readout]
) -> RowsWithFeatures:
    """Compute the features of all rows of a split, or of a sample of `MAX_ROWS` where there are more."""
    prepared, is_whole = view.rows, len(rows) <= MAX_ROWS
    if not is_whole:
        chosen = sample(rows, MAX_ROWS, seed=f"{task.data.seed}/{task.data.spec.name}/readout")
        prepared = task.kind.prepare(task.backbone, chosen, max_length=task.budget.max_length)
    features = frozen_features(task.backbone, prepared.tokens, readouts=candidates)
    return RowsWithFeatures(prepared, features, is_whole)


def _keep(features: FrozenFeatures, readout: Readout | None) -> FrozenFeatures:
    """Return the features without the vectors of the readouts that were not chosen."""
    return replace(features, readouts={} if readout is None else {readout: features.readouts[readout]})
