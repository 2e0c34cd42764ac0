"""Forward texts through learned deltas, for answers and for evidence that the texts are the tasks'."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, MixedBatch
from continual.features.forward import ForwardRequest, NamedRequest, run_mixed_forward
from continual.features.random_features import FrozenFeatures
from continual.features.tokens import reserve_tokens
from continual.generation.prompts import Generated, Prompt
from continual.inference.delta_cache import DeltaCache
from continual.inference.task_statistics import PROBABILISTIC_KIND, answer_log_probabilities
from continual.kinds import Answer, ForwardContext, Kind, Outputs, backbone_for, kind_of_delta
from continual.kinds.writing import WRITE
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
    """

    texts: Sequence[Text]
    max_length: int
    evidence: FitStatistics | None = None
    frozen: FrozenFeatures | None = None


@dataclass(frozen=True)
class FailedAnswer:
    """Stands for an answer that could not be computed; `error` is the reason."""

    error: str


@dataclass(frozen=True)
class PendingAnswer:
    """Stands for an answer that is still to be written.

    Attributes:
        prompt: Its prompt, whose delta has the name of its key in the cache.
        finish: Returns the answer from what was written.
    """

    prompt: Prompt
    finish: Callable[[Generated], Answer]


AnyAnswer = Answer | FailedAnswer | PendingAnswer


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
    excess_log_prob = torch.zeros(len(answers))
    if evidence is not None and kind.metric_kind == PROBABILISTIC_KIND:
        excess_log_prob = answer_log_probabilities(answers) - evidence.mean_log_prob
    return Opinion(answers, excess_log_prob, _fit(context, evidence, run or context.run))


def _fit(context: ForwardContext[Any], evidence: FitStatistics | None, run: RunForward) -> Tensor:
    return torch.zeros(len(context.rows.tokens)) if evidence is None else evidence.fit(run(context.pooled_request))


def query_deltas(
    backbone: Backbone, cache: DeltaCache, queries: Mapping[str, DeltaQuery], *, defer: bool = False
) -> dict[str, Opinion[AnyAnswer]]:
    """Compute the opinions of many deltas; requests of the same forward function share mixed batches.

    Args:
        backbone: The frozen backbone.
        cache: Where deltas are loaded from.
        queries: The texts for each delta, by its key in the cache.
        defer: Whether answers that are written token by token are left as `PendingAnswer`.

    Returns:
        Opinions by the same keys. A delta that cannot be loaded or put on the device fails its own texts only.
    """
    plans: dict[str, _QueryPlan] = {}
    errors: dict[str, ContinualError] = {}
    cache.prefetch(queries)
    for name, query in queries.items():
        try:
            plans[name] = _plan(backbone, cache.get(name), query, defer=defer)
        except ContinualError as error:
            errors[name] = error
    results = _run_mixed(backbone, cache, plans, errors)
    opinions: dict[str, Opinion[AnyAnswer]] = {}
    for name, query in queries.items():
        try:
            opinions[name] = (
                _failed_opinion(query, errors[name]) if name in errors else plans[name].opinion(results, name=name)
            )
        except ContinualError as error:
            opinions[name] = _failed_opinion(query, error)
    return opinions


@dataclass(frozen=True)
class _QueryPlan:
    """A query with its loaded delta; `answer_request` is the forward request that the answers need.

    The answers of a deferred one are written later.
    """

    delta: Delta
    kind: Kind[Any]
    context: ForwardContext[Any]
    answer_request: ForwardRequest[Any]
    evidence: FitStatistics | None
    is_deferred: bool

    @property
    def requests(self) -> dict[ForwardRequest[Any], None]:
        """All requests without repetition, in order."""
        answers = () if self.is_deferred else (self.answer_request,)
        return dict.fromkeys(answers if self.evidence is None else (*answers, self.context.pooled_request))

    def can_mix(self) -> bool:
        """Return whether the rows can share a batch with rows of other deltas."""
        return self.context.delta is not None and Bank.can_batch(self.context.backbone, self.context.delta)

    def opinion(self, results: Mapping[ForwardRequest[Any], Any], *, name: str = "") -> Opinion[Any]:
        """Compute the opinion; requests that are not among `results` are run now.

        Args:
            results: Results by request.
            name: The delta's key in the cache.
        """

        def run(request: ForwardRequest[Any]) -> Any:
            return results[request] if request in results else self.context.run(request)

        if self.is_deferred:
            prompts = [replace(prompt, delta=name) for prompt in self.answer_request.items]
            pending = [PendingAnswer(prompt, self._finish) for prompt in prompts]
            return Opinion(pending, torch.zeros(len(pending)), _fit(self.context, self.evidence, run))
        outputs = self.kind.outputs_from(self.context.rows, self.delta.head, run(self.answer_request))
        return opinion_from_outputs(self.kind, self.context, outputs, evidence=self.evidence, run=run)

    def _finish(self, generated: Generated) -> Answer:
        outputs = self.kind.outputs_from(self.context.rows, self.delta.head, [generated])
        (answer,) = self.kind.answers(self.context.backbone, outputs, self.context.rows)
        return answer


def _plan(backbone: Backbone, delta: Delta, query: DeltaQuery, *, defer: bool = False) -> _QueryPlan:
    kind = kind_of_delta(delta)
    backbone = backbone_for(reserve_tokens(backbone, delta.settings), kind)
    rows = kind.prepare(backbone, LabelledTexts(tuple(query.texts), ()), max_length=query.max_length)
    reads_frozen_features = delta.head is None or delta.head.readout == backbone.readout
    if query.frozen is not None and not delta.values and reads_frozen_features:  # a head alone on the same vectors
        context = ForwardContext(backbone, None, rows, query.frozen)
    else:
        context = ForwardContext(backbone, delta, rows)
    request = kind.forward_request(context, delta.head)
    return _QueryPlan(delta, kind, context, request, query.evidence, defer and request.forward is WRITE)


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
