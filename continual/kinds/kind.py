"""The interface of a task kind: prepared rows, head start, loss, and answers.

`Kind` is the base class. A kind that answers from the pooled vector of a text derives from `PooledKind`, which fills in
the forward passes and leaves the head and its loss; any other derives from `Kind` itself. A new kind is a subclass, and
a `tasks.KindSchema` that names it and states the type of its targets and its metrics.

The calls of one task, in order:

    incompatibilities → from_data → prepare           before training
    fit_frozen                                        what the frozen backbone's outputs for train rows decide
    closed_form_start → with_transferred_head         the start of the head, judged on held-out rows
    loss_inputs, loss, loss_weight                    training
    forward_request → outputs_from → answers          evaluation and inference
    forward_request → loss_from                       the validation loss of an epoch

Shapes: N rows, B rows of a batch, T tokens, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.readout import Readout
from continual.deltas import Delta, Head, attached
from continual.features.forward import ForwardRequest, run_forward
from continual.features.pooling import forward_pooled
from continual.features.random_features import FrozenFeatures, frozen_features
from continual.features.tokens import Tokens, sorted_batches, truncated_counts
from continual.kinds.answer import Answer
from tasks import LabelledTexts, TaskData, TaskSpec

LOSS_BATCH = 8  # rows whose loss is computed at once where no gradient is
Outputs = Mapping[str, Tensor]  # raw outputs for N rows, compared bit by bit: tensors whose first dimension is N


class PreparedRows(Protocol):
    """Tokenized rows with their targets; each kind adds the fields that its loss needs."""

    @property
    def tokens(self) -> Tokens:
        """Tokens of the N plain texts, without any template, for frozen features and the signature."""

    @property
    def truth(self) -> Sequence[Any]:
        """Targets of the N rows in the form that the metrics take; empty for rows without targets."""


P = TypeVar("P", bound=PreparedRows)
R = TypeVar("R")


@dataclass(frozen=True)
class ForwardContext(Generic[P]):
    """Prepared rows, with the backbone and the delta that they are forwarded through.

    Attributes:
        backbone: The frozen backbone.
        delta: The delta to attach; None for the backbone alone.
        rows: The N prepared rows.
        cached_frozen: The value of `frozen` for these rows where an earlier pass computed it, else None.
        chosen_readout: The readout of rows without a delta's head; None for the backbone's.
    """

    backbone: Backbone
    delta: Delta | None
    rows: P
    cached_frozen: FrozenFeatures | None = None
    chosen_readout: Readout | None = None

    @property
    def readout(self) -> Readout:
        """The readout of the delta's head, or without one the chosen one, or the backbone's."""
        if self.delta and self.delta.head:
            return self.delta.head.readout
        return self.chosen_readout or self.backbone.readout

    @cached_property
    def pooled_request(self) -> ForwardRequest[Tensor]:
        """The request that yields `vectors` [N, D]; one object, so that `run` recognises it."""
        return forward_pooled(self.backbone, self.rows.tokens, self.readout)

    @cached_property
    def vectors(self) -> Tensor:
        """Pooled vectors [N, D], on the CPU."""
        if self.delta is None and self.readout == self.backbone.readout:
            return self.frozen.pooled
        if self.delta is None and self.cached_frozen and self.readout in self.cached_frozen.readouts:
            return self.cached_frozen.readouts[self.readout]
        return run_forward(self.backbone, self.delta, self.pooled_request)

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """Features of the plain texts in the frozen backbone, without the delta and without a template."""
        return self.cached_frozen or frozen_features(self.backbone, self.rows.tokens)

    def run(self, request: ForwardRequest[R]) -> R:
        """Run a request on these rows; `pooled_request` is run once and cached."""
        if request is self.pooled_request:
            return cast(R, self.vectors)
        return run_forward(self.backbone, self.delta, request)


@dataclass(frozen=True)
class HeadStart:
    """A candidate for the start of a head, with its quality on held-out rows.

    Attributes:
        head: The head; None for a kind without heads.
        held_out_quality: Quality of the answer to each held-out row [N], comparable within one kind, higher is better.
    """

    head: Head | None
    held_out_quality: Tensor

    @property
    def mean_quality(self) -> float:
        """Mean of the held-out rows' qualities."""
        return float(self.held_out_quality.double().mean())


class Kind(ABC, Generic[P]):
    """A kind of task, fitted to one task: everything but the delta that answering its rows needs.

    A subclass is a frozen dataclass, generic in its type of prepared rows. Its fields are the values that it takes from
    the task's train rows (labels, longest answer, mean and deviation), and are validated by pydantic when a delta's
    file is read.

    Attributes:
        metric_kind: The kind whose metrics score it, as `continual.metrics.metrics_of` takes it.
        generates: Whether an encoder-decoder answers with its decoder, so that edits go to the decoder as well.
    """

    metric_kind: ClassVar[str]
    generates: ClassVar[bool]

    @classmethod
    @abstractmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield one message per reason why the backbone cannot learn the task; nothing where it can.

        A message says what is wrong and what to do. It depends on the spec alone: no row is loaded yet.
        """

    @classmethod
    @abstractmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Fit the kind's fields to a task's spec and train rows."""

    def fit_frozen(self, train: ForwardContext[P]) -> Self:
        """Return the kind with what it takes from the train rows through the frozen backbone; itself by default."""
        return self

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the fields as JSON for the delta's file; `kind_from_metadata` reads them back.

        Only `Classification` returns none: a delta with a head and without a kind is read as one.
        """

    @abstractmethod
    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> P:
        """Tokenize rows and convert their targets.

        Args:
            backbone: The backbone whose tokenizer is used.
            rows: N texts, with a target each or with none at all (inference).
            max_length: Largest number of tokens of an input; longer texts are truncated.
        """

    def truncated_counts(self, backbone: Backbone, rows: LabelledTexts, prepared: P, *, max_length: int) -> list[int]:
        """Count the tokens of each row [N] that `prepare` cut off; by default those of the plain text.

        Args:
            backbone: The backbone whose tokenizer is used.
            rows: The N rows.
            prepared: The same rows as `prepare` returned them.
            max_length: The length that they were prepared with.
        """
        return truncated_counts(backbone, rows.texts, prepared.tokens)

    def example(self, backbone: Backbone, rows: P) -> Mapping[str, str]:
        """Return the first of rows with targets as the model reads it, by parts; empty for a kind that has no form."""
        return {}

    @abstractmethod
    def signature_classes(self, rows: P) -> tuple[Tensor, int]:
        """Return the class [N] of each row in the task's signature, and the number of classes.

        A kind without classes returns `single_class(rows)`.
        """

    @abstractmethod
    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return a head of zeros, or None for a kind without heads."""

    @abstractmethod
    def closed_form_start(self, rows: ForwardContext[P], held_out: ForwardContext[P]) -> HeadStart:
        """Fit a head in closed form and judge it on held-out rows.

        Args:
            rows: Train rows through the delta whose features the head is fitted in, or through the frozen backbone.
            held_out: Held-out rows through the same delta; hyperparameters such as shrinkage are chosen on them.

        Returns:
            The head, or None for a kind without heads, with the quality of each held-out row. The quality is used to
            compare warm-start candidates, also for a kind without heads.
        """

    @abstractmethod
    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[P]) -> HeadStart:
        """Combine a start with the head of another task, where the held-out rows become better by it.

        Args:
            start: The closed-form start in the features of the other task's delta.
            head: The other task's head.
            held_out: Held-out rows through the other task's delta.

        Returns:
            The combined start, or `start` itself where the head does not help or the kind cannot use it.
        """

    @abstractmethod
    def loss(self, backbone: Backbone, delta: Delta, rows: P, batch: Sequence[int]) -> Tensor:
        """Compute the loss of a batch through the backbone as it is now: the caller has attached the delta.

        Args:
            backbone: The backbone, with the delta attached.
            delta: The attached delta, whose head is used.
            rows: All prepared rows.
            batch: Indices of the B rows of the batch.

        Returns:
            A scalar with gradient, the mean over `loss_weight(rows, batch)` units.
        """

    @abstractmethod
    def loss_inputs(self, backbone: Backbone, rows: P) -> Tokens:
        """Return the token sequences that `loss` forwards for all rows (of an encoder-decoder, the encoder's).

        Training caches the states of the layers below the lowest edit for them. They may be more than N, such as the
        windows of long passages.
        """

    def row_lengths(self, rows: P) -> list[int]:
        """Return the number of tokens that `loss` forwards for each row [N]: rows of similar length share a batch."""
        return rows.tokens.lengths

    @abstractmethod
    def loss_weight(self, rows: P, batch: Sequence[int]) -> float:
        """Return the number of units that `loss` is a mean over: the rows, or the target tokens, of the batch.

        It weights the micro-batches of a batch that does not fit the memory at once.
        """

    @abstractmethod
    def forward_request(self, context: ForwardContext[P], head: Head | None) -> ForwardRequest[Any]:
        """Return the forward passes that answering the rows needs; they may be batched with others."""

    @abstractmethod
    def outputs_from(self, rows: P, head: Head | None, result: Any) -> Outputs:
        """Compute the outputs of all rows from the result of `forward_request`.

        Args:
            rows: The N rows of the request.
            head: The delta's head, or None.
            result: The gathered result of the request.

        Returns:
            Tensors on the CPU whose first dimension is N. They are stored to prove that a task's predictions have not
            changed by a bit.
        """

    def outputs(self, context: ForwardContext[P], head: Head | None) -> Outputs:
        """Forward the rows through one delta and compute their outputs, as `outputs_from` does."""
        return self.outputs_from(context.rows, head, context.run(self.forward_request(context, head)))

    def outputs_and_loss(self, context: ForwardContext[P], delta: Delta) -> tuple[Outputs, float]:
        """Return the outputs of all rows and the mean of their loss, from one pass where `loss_from` can."""
        result = context.run(self.forward_request(context, delta.head))
        return self.outputs_from(context.rows, delta.head, result), self.loss_from(context, delta, result)

    @torch.inference_mode()
    def loss_from(self, context: ForwardContext[P], delta: Delta, result: Any) -> float:
        """Compute the mean of `loss` over all rows, as `loss_weight` weights them.

        The default forwards the rows once more; a kind whose loss follows from the result of `forward_request`
        overrides it.

        Args:
            context: The N rows, with their targets, through the delta.
            delta: The delta.
            result: The gathered result of `forward_request`.
        """
        rows, batches = context.rows, list(sorted_batches(context.rows.tokens.lengths, LOSS_BATCH))
        with attached(context.backbone, delta):
            losses = [float(self.loss(context.backbone, delta, rows, batch)) for batch in batches]
        weights = [self.loss_weight(rows, batch) for batch in batches]
        return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)

    def rank(self, score: float, loss: float) -> tuple[float, float]:
        """Return the rank of a validation score and loss among epochs and trials; higher is better.

        The loss tells equal scores of few rows apart.
        """
        return score, -loss if isfinite(loss) else -inf

    @abstractmethod
    def answers(self, backbone: Backbone, outputs: Outputs, rows: P) -> list[Answer]:
        """Convert outputs to the answer of each row."""

    @property
    def registered_labels(self) -> tuple[str, ...]:
        """The labels that the registry lists for a delta of this kind; empty for a kind without labels."""
        return ()

    def to_task_units(self, head: Head) -> Head:
        """Return a head whose outputs are in the units of the targets, for export; the head itself by default."""
        return head

    def to_standard_units(self, head: Head) -> Head:
        """Return a head with outputs in the units of training; the inverse of `to_task_units`."""
        return head

    @abstractmethod
    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return for each target an answer without value, by which a row routed to another task is scored.

        It must be of the type that the metrics take: a wrong label, an empty text, the mean of the train rows.
        """

    def metric_inputs(self, rows: P, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """Return what metrics of this kind may need besides targets and answers; nothing by default.

        Args:
            rows: The N rows that were answered.
            answers: Their answers, some perhaps from another version of the delta, or without a distribution.

        Returns:
            Inputs by their names in `continual.metrics.INPUTS`.
        """
        return {}

    def likelihood_inputs(self, context: ForwardContext[P]) -> Mapping[str, Any]:
        """Return what metrics may need of the targets' likelihood; nothing by default.

        Args:
            context: The N rows, with their targets, through the delta.

        Returns:
            Inputs by their names in `continual.metrics.INPUTS`.
        """
        return {}

    def baseline_answers(self, train: LabelledTexts, rows: P) -> list[Answer] | None:
        """Return for each row [N] an answer that takes no learning; None for a kind without one, which is the default.

        Args:
            train: The train rows.
            rows: The N rows to answer.
        """
        return None


def backbone_for(backbone: Backbone, kind: Kind[Any]) -> Backbone:
    """Return the backbone with `generates` set as the kind needs it."""
    return replace(backbone, generates=kind.generates)


def zero_head(backbone: Backbone, labels: tuple[str, ...]) -> Head:
    """Return a head of zeros, weight [C, D] and bias [C], with C = len(labels) outputs."""
    return Head(torch.zeros(len(labels), backbone.hidden_size), torch.zeros(len(labels)), labels, backbone.pooling)


def single_class(rows: PreparedRows) -> tuple[Tensor, int]:
    """Return class 0 for each row [N], and the count 1: the signature classes of a kind without classes."""
    return torch.zeros(len(rows.tokens), dtype=torch.long), 1
