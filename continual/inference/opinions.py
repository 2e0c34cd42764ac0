"""Forward texts through learned deltas, for answers and for evidence that the texts are the tasks'."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, MixedBatch
from continual.features.forward import ForwardRequest, NamedRequest, run_mixed_forward
from continual.features.random_features import FrozenFeatures
from continual.features.tokens import reserve_tokens
from continual.inference.delta_cache import DeltaCache
from continual.inference.task_statistics import PROBABILISTIC_KIND, answer_log_probabilities
from continual.kinds import Answer, ForwardContext, Kind, Outputs, TokenCallback, backbone_for, kind_of_delta
from continual.routing import FitStatistics, Opinion
from tasks import LabelledTexts, Text
from tasks.errors import ContinualError

RunForward = Callable[[ForwardRequest[Any]], Any]


@dataclass(frozen=True)
class DeltaQuery:
    """Texts for one delta.

    Attributes:
        texts: N texts.
        max_length: Tokens that a text is truncated to.
        evidence: Statistics that confidence and fit are compared with; without them both are 0.
        frozen: The same texts, truncated alike, in frozen features; saves a pass for a delta without values.
        on_token: One callback per text for answers that are written token by token; empty where no text has one.
    """

    texts: Sequence[Text]
    max_length: int
    evidence: FitStatistics | None = None
    frozen: FrozenFeatures | None = None
    on_token: Sequence[TokenCallback | None] = ()


@dataclass(frozen=True)
class FailedAnswer:
    """Stands for an answer that could not be computed; `error` is the reason."""

    error: str


def query_delta(backbone: Backbone, delta: Delta, query: DeltaQuery) -> Opinion[Answer]:
    """Compute a delta's answers to N texts, with their excess log-probability [N] and fit [N]."""
    return _plan(backbone, delta, query).opinion({})


def opinion_from_outputs(
    kind: Kind[Any],
    context: ForwardContext[Any],
    outputs: Outputs,
    *,
    evidence: FitStatistics | None,
    run: RunForward | None = None,
) -> Opinion[Answer]:
    """Compute the opinion on rows whose outputs are there already.

    Args:
        kind: Kind of the delta's task.
        context: The N rows, with the backbone and the delta.
        outputs: The delta's outputs for the rows, tensors whose first dimension is N.
        evidence: Statistics that confidence and fit are compared with; without them both are 0.
        run: Runs the request of pooled vectors; by default the context does.

    Returns:
        Answers, excess log-probability [N] (0 for kinds without probabilities) and fit [N].
    """
    answers = kind.answers(context.backbone, outputs, context.rows)
    excess_log_prob = fit = torch.zeros(len(answers))
    if evidence is not None:
        if kind.metric_kind == PROBABILISTIC_KIND:
            excess_log_prob = answer_log_probabilities(answers) - evidence.mean_log_prob
        fit = evidence.fit((run or context.run)(context.pooled_request))
    return Opinion(answers, excess_log_prob, fit)


def query_deltas(
    backbone: Backbone, cache: DeltaCache, queries: Mapping[str, DeltaQuery]
) -> dict[str, Opinion[Answer | FailedAnswer]]:
    """Compute the opinions of many deltas; requests of the same forward function share mixed batches.

    Args:
        backbone: The frozen backbone.
        cache: Where deltas are loaded from.
        queries: The texts for each delta, by its key in the cache.

    Returns:
        Opinions by the same keys. A delta that cannot be loaded or put on the device fails its own texts only.
    """
    plans: dict[str, _QueryPlan] = {}
    errors: dict[str, ContinualError] = {}
    cache.prefetch(queries)
    for name, query in queries.items():
        try:
            plans[name] = _plan(backbone, cache.get(name), query)
        except ContinualError as error:
            errors[name] = error
    results = _run_mixed(backbone, cache, plans, errors)
    opinions: dict[str, Opinion[Answer | FailedAnswer]] = {}
    for name, query in queries.items():
        try:
            opinions[name] = _failed_opinion(query, errors[name]) if name in errors else plans[name].opinion(results)
        except ContinualError as error:
            opinions[name] = _failed_opinion(query, error)
    return opinions


@dataclass(frozen=True)
class _QueryPlan:
    """A query with its loaded delta; `answer_request` is the forward request that the answers need."""

    delta: Delta
    kind: Kind[Any]
    context: ForwardContext[Any]
    answer_request: ForwardRequest[Any]
    evidence: FitStatistics | None

    @property
    def requests(self) -> dict[ForwardRequest[Any], None]:
        """All requests without repetition, in order."""
        return dict.fromkeys(
            (self.answer_request,) if self.evidence is None else (self.answer_request, self.context.pooled_request)
        )

    def can_mix(self) -> bool:
        """Return whether the rows can share a batch with rows of other deltas."""
        return self.context.delta is not None and Bank.can_batch(self.context.backbone, self.context.delta)

    def opinion(self, results: Mapping[ForwardRequest[Any], Any]) -> Opinion[Any]:
        """Compute the opinion; requests that are not among `results` are run now."""

        def run(request: ForwardRequest[Any]) -> Any:
            return results[request] if request in results else self.context.run(request)

        outputs = self.kind.outputs_from(self.context.rows, self.delta.head, run(self.answer_request))
        return opinion_from_outputs(self.kind, self.context, outputs, evidence=self.evidence, run=run)


def _plan(backbone: Backbone, delta: Delta, query: DeltaQuery) -> _QueryPlan:
    kind = kind_of_delta(delta)
    backbone = backbone_for(reserve_tokens(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, LabelledTexts(tuple(query.texts), ()), max_length=query.max_length)
    if query.frozen is not None and not delta.values:  # a head alone: the frozen features are the delta's
        context = ForwardContext(backbone, None, rows, query.frozen)
    else:
        context = ForwardContext(backbone, delta, rows, on_token=query.on_token)
    return _QueryPlan(delta, kind, context, kind.forward_request(context, delta.head), query.evidence)


def _failed_opinion(query: DeltaQuery, error: ContinualError) -> Opinion[Answer | FailedAnswer]:
    zeros = torch.zeros(len(query.texts))
    return Opinion([FailedAnswer(f"{type(error).__name__}: {error}")] * len(query.texts), zeros, zeros)


def _run_mixed(
    backbone: Backbone, cache: DeltaCache, plans: Mapping[str, _QueryPlan], errors: dict[str, ContinualError]
) -> dict[ForwardRequest[Any], Any]:
    """Run the requests that can share batches; add deltas that do not fit the device to `errors`."""
    by_forward: dict[object, list[NamedRequest]] = {}
    for name, plan in plans.items():
        if plan.can_mix():
            for request in plan.requests:
                by_forward.setdefault(request.forward, []).append((name, request))

    def mix(names: Sequence[str]) -> tuple[list[int], MixedBatch]:
        needed = set(names)
        for name in needed - errors.keys():
            plan = plans[name]
            try:
                cache.put_on_device(name, plan.delta, beside=needed, backbone=plan.context.backbone)
            except ContinualError as error:
                errors[name] = error
        rows = [i for i, name in enumerate(names) if name not in errors]
        order, mixture = cache.mixed_batch([names[i] for i in rows])
        return [rows[i] for i in order], mixture

    added = {name: plan.delta.settings.added_tokens for name, plan in plans.items()}
    whole = replace(backbone, generates=True)  # some deltas of a mixture may change a decoder
    shared = [requests for requests in by_forward.values() if len({name for name, _ in requests}) > 1]
    parts = [run_mixed_forward(whole, requests, mix, slots=cache.slots, added_tokens=added) for requests in shared]
    return {request: result for part in parts for request, result in part.items()}
