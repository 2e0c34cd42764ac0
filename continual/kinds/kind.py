"""What every kind of task is: how its rows are read, how a delta starts and learns, how it answers.

Shapes: N rows, B rows of a batch, D hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.backbones.hub import Pooling
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest, run_forward
from continual.features.pooling import forward_pooled, pooled_features
from continual.features.random_features import FrozenFeatures, frozen_features
from continual.features.tokens import Tokens, pad
from tasks import LabelledTexts, TaskData, TaskSpec

TokenCallback = Callable[[str], None]  # is told of an answer, as far as it is written
Outputs = Mapping[str, Tensor]  # what a delta says of N rows, to the bit: tensors whose first dimension is N


class PreparedRows(Protocol):
    """Rows ready for a backbone. truth: what is right for each, as the metrics want it; nothing where it is not known.

    Each kind adds what it needs besides.
    """

    @property
    def tokens(self) -> Tokens: ...
    @property
    def truth(self) -> Sequence[Any]: ...


P = TypeVar("P", bound=PreparedRows)
R = TypeVar("R")


@dataclass(frozen=True)
class Answer:
    """label: the answer, a text or a number · score: its probability, None where a kind has none."""

    label: str | float
    score: float | None


@dataclass(frozen=True)
class ForwardContext(Generic[P]):
    """Rows as they are through a delta's edits or, without one, through the frozen backbone.

    known: what `frozen` gave for these rows, where that was asked before · hear: for each row who is told of its answer
    while it is written, None for nobody; nothing where nobody is.
    """

    backbone: Backbone
    delta: Delta | None
    rows: P
    cached_frozen: FrozenFeatures | None = None
    on_token: Sequence[TokenCallback | None] = ()

    @property
    def pooling(self) -> Pooling:
        return self.delta.head.pooling if self.delta and self.delta.head else self.backbone.pooling

    @cached_property
    def texts(self) -> ForwardRequest[Tensor]:
        """What is to be read for `vectors`."""
        return forward_pooled(self.backbone, self.rows.tokens, self.pooling)

    @cached_property
    def vectors(self) -> Tensor:
        """Pooled vectors [N, D], on the CPU."""
        return run_forward(self.backbone, self.delta, self.texts) if self.delta else self.frozen.pooled

    @cached_property
    def frozen(self) -> FrozenFeatures:
        """The texts themselves through the frozen backbone, whatever a template or a delta makes of them."""
        return self.cached_frozen or frozen_features(self.backbone, self.rows.tokens)

    def read(self, reading: ForwardRequest[R]) -> R:
        """What is read of these rows; their vectors only once."""
        found: Any = self.vectors if reading is self.texts else run_forward(self.backbone, self.delta, reading)
        whole: R = found
        return whole


@dataclass(frozen=True)
class HeadStart:
    """How well a task would begin: its head, and the quality of each held-out row's answer [N], more is better."""

    head: Head | None
    held_out_quality: Tensor

    @property
    def mean(self) -> float:
        return float(self.held_out_quality.double().mean())


class Kind(ABC, Generic[P]):
    """A kind of task, as one task has it. A subclass is a frozen dataclass of what answering needs besides a delta.

    scored: whose metrics it is scored by · generates: whether an encoder-decoder answers with its decoder.
    """

    metric_kind: ClassVar[str]
    generates: ClassVar[bool]

    @classmethod
    @abstractmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Why the backbone cannot take such a task, and what to do; nothing where it can."""

    @classmethod
    @abstractmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """The kind with what it takes from a task's spec and train rows."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a delta's file says of the kind, as JSON; nothing where the labels of its head say it all."""

    @abstractmethod
    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> P:
        """Rows, with or without targets, ready for a backbone; texts are cut at `max_length` tokens."""

    @abstractmethod
    def classes(self, rows: P) -> tuple[Tensor, int]:
        """The class [N] of each row in the task's signature, and how many there are."""

    @abstractmethod
    def zero_head(self, backbone: Backbone) -> Head | None:
        """A head of zeros; None for a kind without heads."""

    @abstractmethod
    def closed_form_start(self, rows: ForwardContext[P], held_out: ForwardContext[P]) -> HeadStart:
        """The head to begin with in the features of these rows, judged on the held-out ones."""

    @abstractmethod
    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[P]) -> HeadStart:
        """The start with what the head of another task adds to it, in whose features the held-out rows are seen.

        The same where that is nothing.
        """

    @abstractmethod
    def loss(self, backbone: Backbone, delta: Delta, rows: P, batch: Sequence[int]) -> Tensor:
        """The loss of the chosen rows through the delta that is attached, a scalar."""

    @abstractmethod
    def loss_inputs(self, backbone: Backbone, rows: P) -> Tokens:
        """What the backbone reads for the loss of all rows, an encoder-decoder with its encoder."""

    @abstractmethod
    def loss_weight(self, rows: P, batch: Sequence[int]) -> float:
        """What the loss is a mean over: how many rows are chosen, or how much there is in them."""

    @abstractmethod
    def forward_request(self, seen: ForwardContext[P], head: Head | None) -> ForwardRequest[Any]:
        """What has to be read of the rows to answer them."""

    @abstractmethod
    def outputs_from(self, rows: P, head: Head | None, found: Any) -> Outputs:
        """What a head says of all rows, on the CPU, given what was read of them."""

    def outputs(self, seen: ForwardContext[P], head: Head | None) -> Outputs:
        """The same of rows that are read now, through one delta."""
        return self.outputs_from(seen.rows, head, seen.read(self.forward_request(seen, head)))

    @abstractmethod
    def answers(self, backbone: Backbone, outputs: Outputs, rows: P) -> list[Answer]:
        """The answer that follows for each row."""

    @abstractmethod
    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """For each row an answer that is worth nothing: what a row is given that was sent to another task."""


class PooledKind(Kind[P]):
    """A kind that answers a text from its pooled vector alone, so that one pass can serve rows of several tasks."""

    @abstractmethod
    def loss_of(self, head: Head, vectors: Tensor, rows: P, batch: Sequence[int]) -> Tensor:
        """The loss of the chosen rows, whose vectors are [B, D], a scalar."""

    def loss(self, backbone: Backbone, delta: Delta, rows: P, batch: Sequence[int]) -> Tensor:
        assert delta.head is not None
        vectors = pooled_features(backbone, pad(backbone, rows.tokens, batch), delta.head.pooling)
        return self.loss_of(delta.head, vectors, rows, batch)

    def loss_inputs(self, backbone: Backbone, rows: P) -> Tokens:
        return rows.tokens

    def loss_weight(self, rows: P, batch: Sequence[int]) -> float:
        return len(batch)

    def forward_request(self, seen: ForwardContext[P], head: Head | None) -> ForwardRequest[Tensor]:
        return seen.texts


def answer_labels(answers: Sequence[Answer]) -> list[Any]:
    return [answer.label for answer in answers]


def backbone_for(backbone: Backbone, kind: Kind[Any]) -> Backbone:
    """The backbone with edits where a kind needs them: in the decoder too, where that answers."""
    return replace(backbone, edits_decoder=kind.generates)


def zero_head(backbone: Backbone, labels: tuple[str, ...]) -> Head:
    """A head of zeros with these outputs."""
    return Head(torch.zeros(len(labels), backbone.hidden_size), torch.zeros(len(labels)), labels, backbone.pooling)


def single_class(rows: PreparedRows) -> tuple[Tensor, int]:
    """The classes of a kind that has none: its signature is that of all rows together."""
    return torch.zeros(len(rows.tokens), dtype=torch.long), 1
