"""Span: the answer to a question is a piece of a passage, from the token that begins it to the one that ends it.

A head [2, D] on the tokens' states gives each token of the passage two logits. They are normalised over all windows of
the passage together, so that windows can be compared: Clark and Gardner (2018), "Simple and Effective Multi-Paragraph
Reading Comprehension" (arXiv:1710.10723); where several places are right, their probabilities add up.

Shapes: T tokens of one window, P of all windows of a passage, W windows, D hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest, iter_forward
from continual.features.pooling import forward_hidden
from continual.features.signature import inverse_shrunk_covariance
from continual.features.tokens import Tokens, pad, tokenize
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Kind, Outputs, single_class, zero_head
from continual.kinds.windows import NOT_IN_PASSAGE, Windows, answer_token_masks, split_into_windows
from tasks import AnswerSpan, GenerationTarget, LabelledTexts, TaskData, TaskSpec

OUTPUTS = ("start", "end")
SHRINKAGES = (0.01, 0.1, 0.5)
HEAD_SCALES = (0.1, 0.3, 1.0, 3.0)
CERTAIN_LOG_PROB = 0.0  # log probability of the only answer there is


@dataclass(frozen=True)
class SpanRows:
    """Rows with their passages. truth: the texts of each row's right answers · marks: for each window, which tokens
    [T, 2] begin an answer, and which end one.
    """

    tokens: Tokens
    truth: tuple[tuple[str, ...], ...]
    passages: tuple[str, ...]
    windows: Windows
    answer_token_masks: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Span(Kind[SpanRows]):
    """longest: characters of the longest answer among the train rows; no answer is longer."""

    metric_kind: ClassVar[str] = "span"
    generates: ClassVar[bool] = False

    longest: int

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        if not backbone.tokenizer.is_fast:
            yield f"backbone {backbone.name!r} has a tokenizer that does not say where tokens stand; add tokenizer.json"

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        return cls(max(len(quote.text) for quotes in _quotes(data.train) for quote in quotes))

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> SpanRows:
        found, quotes = split_into_windows(backbone, rows.texts, max_length=max_length), _quotes(rows)
        return SpanRows(
            tokenize(backbone, rows.texts, max_length=max_length),
            tuple(tuple(quote.text for quote in row) for row in quotes),
            tuple("" if isinstance(text, str) else text[1] for text in rows.texts),
            found,
            tuple(
                answer_token_masks(found.spans[window], row)
                for own, row in zip(found.of_rows, quotes, strict=bool(quotes))
                for window in own
            ),
        )

    def classes(self, rows: SpanRows) -> tuple[Tensor, int]:
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        return zero_head(backbone, OUTPUTS)

    def closed_form_start(self, rows: ForwardContext[SpanRows], held_out: ForwardContext[SpanRows]) -> HeadStart:
        """Linear discriminants of the tokens that begin, and of those that end, an answer against all tokens.

            w = C⁻¹ (μ − mean) · scale

        Shrinkage of C and scale are the best on the held-out rows; the quality of a row is minus its loss.
        """
        inverses, directions = _discriminants(rows)
        weights = [directions @ inverse * scale for inverse in inverses for scale in HEAD_SCALES]
        heads = [Head(weight.float(), torch.zeros(2), OUTPUTS, rows.pooling) for weight in weights]
        stacked = Head(torch.cat([head.weight for head in heads]), torch.zeros(2 * len(heads)), (), rows.pooling)
        logits = held_out.read(self.forward_request(held_out, stacked))
        qualities = [-_losses([own[:, 2 * i : 2 * i + 2] for own in logits], held_out.rows) for i in range(len(heads))]
        best = max(range(len(heads)), key=lambda i: float(qualities[i].mean()))
        return HeadStart(heads[best], qualities[best])

    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[SpanRows]) -> HeadStart:
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: SpanRows, batch: Sequence[int]) -> Tensor:
        """Mean over rows of the cross entropies of both ends, in nats."""
        assert delta.head is not None
        chosen = rows.windows.of(batch)
        logits = dict(zip(chosen, _window_logits(backbone, delta.head, rows.windows.tokens, chosen), strict=True))
        return torch.stack([_row_loss(logits, rows, row) for row in batch]).mean()

    def loss_inputs(self, backbone: Backbone, rows: SpanRows) -> Tokens:
        return rows.windows.tokens

    def loss_weight(self, rows: SpanRows, batch: Sequence[int]) -> float:
        return len(batch)

    def forward_request(self, seen: ForwardContext[SpanRows], head: Head | None) -> ForwardRequest[list[Tensor]]:
        assert head is not None
        return forward_hidden(seen.rows.windows.tokens, partial(_logits_on_cpu, head.to(seen.backbone.device)), list)

    def outputs_from(self, rows: SpanRows, head: Head | None, found: Sequence[Tensor]) -> Outputs:
        """spans [N, 2], in characters of the passage; log_probabilities [N]."""
        known = rows.windows
        best = [_best([found[w] for w in own], [known.spans[w] for w in own], self.longest) for own in known.of_rows]
        return {
            "spans": torch.tensor([span for span, _ in best], dtype=torch.long).reshape(-1, 2),
            "log_probabilities": torch.tensor([sure for _, sure in best]),
        }

    def answers(self, backbone: Backbone, outputs: Outputs, rows: SpanRows) -> list[Answer]:
        """The piece of the passage; of a text without a passage nothing."""
        scores = outputs["log_probabilities"].exp().tolist()
        return [
            Answer(passage[begin:end], score)
            for passage, (begin, end), score in zip(rows.passages, outputs["spans"].tolist(), scores, strict=True)
        ]

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        return [""] * len(truth)


def _quotes(rows: LabelledTexts) -> list[tuple[AnswerSpan, ...]]:
    return [target for target in rows.targets if isinstance(target, tuple) and not isinstance(target, GenerationTarget)]


def _window_logits(backbone: Backbone, head: Head, tokens: Tokens, chosen: Sequence[int]) -> list[Tensor]:
    """The head's logits [T, C] for every token of the chosen windows, through the backbone as it is now."""
    batch = pad(backbone, tokens, chosen)
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    return _own(head(hidden.float()), batch["attention_mask"])


def _own(found: Tensor, mask: Tensor) -> list[Tensor]:
    """Of what was found for all tokens of a batch, that of each window's own."""
    return [own[:length] for own, length in zip(found, mask.sum(dim=1).tolist(), strict=True)]


def _states_on_cpu(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    return _own(hidden.cpu(), mask)


def _logits_on_cpu(head: Head, hidden: Tensor, mask: Tensor) -> list[Tensor]:
    return _own(head(hidden.float()).cpu(), mask)


def _losses(logits: Sequence[Tensor], rows: SpanRows) -> Tensor:
    """The loss of each row [N], in nats."""
    by_window = dict(enumerate(logits))
    return torch.stack([_row_loss(by_window, rows, row) for row in range(len(rows.passages))])


def _row_loss(logits: Mapping[int, Tensor], rows: SpanRows, row: int) -> Tensor:
    """Minus the log probability of the right ends [2] of one passage, summed; 0 where no token is an end."""
    own = rows.windows.of_rows[row]
    every = torch.cat([logits[window] for window in own])
    inside = torch.cat([rows.windows.spans[window][:, 0] != NOT_IN_PASSAGE for window in own]).to(every.device)
    right = torch.cat([rows.answer_token_masks[window] for window in own]).to(every.device)
    if not right.any(dim=0).all():
        return 0.0 * every.sum()
    total = every[inside].logsumexp(dim=0)
    hit = every.masked_fill(~right, -torch.inf).logsumexp(dim=0)
    return (total - hit).sum()


def _best(logits: Sequence[Tensor], spans: Sequence[Tensor], longest: int) -> tuple[tuple[int, int], float]:
    """The most probable piece of a passage that is not too long, in characters, and its log probability."""
    found: tuple[tuple[int, int], float] = (0, 0), CERTAIN_LOG_PROB
    inside = [own[:, 0] != NOT_IN_PASSAGE for own in spans]
    if not any(bool(own.any()) for own in inside):
        return found
    total = torch.cat([own[there] for own, there in zip(logits, inside, strict=True)]).logsumexp(dim=0)
    best = -torch.inf
    for window, place, there in zip(logits, spans, inside, strict=True):
        (begin, end), where = (window[there] - total).unbind(dim=1), place[there]
        if not len(where):
            continue
        lengths = where[None, :, 1] - where[:, None, 0]
        both = (begin[:, None] + end[None, :]).masked_fill((lengths <= 0) | (lengths > longest), -torch.inf)
        top = float(both.max())
        if top > best:
            i, j = divmod(int(both.argmax()), len(where))
            best, found = top, ((int(where[i, 0]), int(where[j, 1])), top)
    return found


@torch.inference_mode()
def _discriminants(seen: ForwardContext[SpanRows]) -> tuple[list[Tensor], Tensor]:
    """Inverse covariances [D, D] of the passages' tokens, one per shrinkage, and how far the tokens [2, D] that begin
    and that end an answer lie from their mean."""
    rows, size = seen.rows, seen.backbone.hidden_size
    count, total, moment = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    ends, numbers = torch.zeros(2, size, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    reading = forward_hidden(rows.windows.tokens, _states_on_cpu, list)
    for window, found in iter_forward(seen.backbone, seen.delta, reading):
        inside = rows.windows.spans[window][:, 0] != NOT_IN_PASSAGE
        x, marks = found.double(), rows.answer_token_masks[window].double()
        own = x[inside]
        count, total, moment = count + len(own), total + own.sum(dim=0), moment + own.T @ own
        ends, numbers = ends + marks.T @ x, numbers + marks.sum(dim=0)
    mean = total / max(count, 1)
    scatter = moment - count * torch.outer(mean, mean)
    inverses = [inverse_shrunk_covariance(scatter, max(count - 1, 1), shrinkage) for shrinkage in SHRINKAGES]
    return inverses, ends / numbers.clamp(min=1).unsqueeze(1) - mean
