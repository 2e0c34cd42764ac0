"""Span: the answer to a question is a piece of a passage, found by a head on its tokens.

A head [2, D] on the tokens' states gives each token of the passage two logits, as begin and as end. They are normalised
over all windows of the passage together, so that windows can be compared: Clark and Gardner (2018), "Simple and
Effective Multi-Paragraph Reading Comprehension" (arXiv:1710.10723); where several places are right, their probabilities
add up.

Shapes: N rows, T tokens of one window, P tokens of all windows of a passage, W windows, D hidden size.
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
from continual.kinds.answer import Answer
from continual.kinds.kind import (
    ForwardContext,
    HeadStart,
    Kind,
    Outputs,
    single_class,
    zero_head,
)
from continual.kinds.windows import (
    NOT_IN_PASSAGE,
    Windows,
    answer_token_masks,
    question_excess,
    split_into_windows,
)
from tasks import AnswerSpan, GenerationTarget, LabelledTexts, TaskData, TaskSpec, text_parts

OUTPUTS = ("start", "end")
SHRINKAGES = (0.01, 0.1, 0.5)
HEAD_SCALES = (0.1, 0.3, 1.0, 3.0)
CERTAIN_LOG_PROB = 0.0  # log probability of the only answer there is

ScoredSpan = tuple[tuple[int, int], float]  # begin and end in characters of the passage, and the log probability


@dataclass(frozen=True)
class SpanRows:
    """N tokenized rows with their passages.

    Attributes:
        tokens: Tokens of question and passage, truncated to one input.
        truth: The texts of each row's right answers; empty for rows without targets.
        passages: The passages; empty texts for rows without one.
        windows: The W windows of all passages.
        answer_token_masks: For each window, the tokens that begin an answer and that end one [T, 2]; empty for rows
            without targets.
    """

    tokens: Tokens
    truth: tuple[tuple[str, ...], ...]
    passages: tuple[str, ...]
    windows: Windows
    answer_token_masks: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Span(Kind[SpanRows]):
    """Extraction of an answer from a passage.

    Attributes:
        longest: Characters of the longest answer among the train rows; no answer is longer.
    """

    metric_kind: ClassVar[str] = "span"
    generates: ClassVar[bool] = False

    longest: int

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield a message where the tokenizer does not give its tokens' offsets in the text."""
        if not backbone.tokenizer.is_fast:
            yield f"backbone {backbone.name!r} has a tokenizer that does not say where tokens stand; add tokenizer.json"

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Measure the longest answer of the train rows."""
        return cls(max(len(answer.text) for answers in _answer_spans(data.train) for answer in answers))

    def settings(self) -> dict[str, Any]:
        """Return the longest answer."""
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> SpanRows:
        """Split the passages into windows of `max_length` tokens and mark the answers' tokens."""
        windows, answers = split_into_windows(backbone, rows.texts, max_length=max_length), _answer_spans(rows)
        return SpanRows(
            tokenize(backbone, rows.texts, max_length=max_length),
            tuple(tuple(answer.text for answer in row) for row in answers),
            tuple((*text_parts(text), "")[1] for text in rows.texts),
            windows,
            tuple(
                answer_token_masks(windows.spans[window], row)
                for window_range, row in zip(windows.row_windows, answers, strict=bool(answers))
                for window in window_range
            ),
        )

    def truncated_counts(
        self, backbone: Backbone, rows: LabelledTexts, prepared: SpanRows, *, max_length: int
    ) -> list[int]:
        """Count the tokens of each question [N] that were cut off; passages of any length are read in windows."""
        return [question_excess(backbone, text, max_length=max_length) for text in rows.texts]

    def signature_classes(self, rows: SpanRows) -> tuple[Tensor, int]:
        """Return one class for all rows: zeros [N], and the count 1."""
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return a head of zeros with two outputs."""
        return zero_head(backbone, OUTPUTS)

    def closed_form_start(self, rows: ForwardContext[SpanRows], held_out: ForwardContext[SpanRows]) -> HeadStart:
        """Fit linear discriminants of the tokens that begin, and that end, an answer against all tokens.

            w = C⁻¹ (μ − mean) · scale

        Shrinkage of C and scale are chosen on the held-out rows; the quality of a row is minus its loss, in nats.
        """
        inverses, directions = _discriminants(rows)
        weights = [directions @ inverse * scale for inverse in inverses for scale in HEAD_SCALES]
        pooling = rows.backbone.pooling
        heads = [Head(weight.float(), torch.zeros(2), OUTPUTS, pooling) for weight in weights]
        stacked = Head(torch.cat([head.weight for head in heads]), torch.zeros(2 * len(heads)), (), pooling)
        logits = held_out.run(self.forward_request(held_out, stacked))
        qualities = [
            -_losses([window[:, 2 * i : 2 * i + 2] for window in logits], held_out.rows) for i in range(len(heads))
        ]
        best = max(range(len(heads)), key=lambda i: float(qualities[i].mean()))
        return HeadStart(heads[best], qualities[best])

    def with_transferred_head(self, start: HeadStart, head: Head, held_out: ForwardContext[SpanRows]) -> HeadStart:
        """Return the start: heads of span tasks are not combined."""
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: SpanRows, batch: Sequence[int]) -> Tensor:
        """Compute the mean over rows of the summed cross entropies of begin and end, in nats: a scalar."""
        assert delta.head is not None
        windows = rows.windows.window_indices(batch)
        logits = _window_logits(backbone, delta.head, rows.windows.tokens, windows)
        by_window = dict(zip(windows, logits, strict=True))
        return torch.stack([_row_loss(by_window, rows, row) for row in batch]).mean()

    def loss_inputs(self, backbone: Backbone, rows: SpanRows) -> Tokens:
        """Return the W windows."""
        return rows.windows.tokens

    def loss_weight(self, rows: SpanRows, batch: Sequence[int]) -> float:
        """Return the number of rows of the batch."""
        return len(batch)

    def forward_request(self, context: ForwardContext[SpanRows], head: Head | None) -> ForwardRequest[list[Tensor]]:
        """Request the head's logits [T, 2] for every window."""
        assert head is not None
        reader = partial(_logits_on_cpu, head.to(context.backbone.device))
        return forward_hidden(context.rows.windows.tokens, reader, list)

    def outputs_from(self, rows: SpanRows, head: Head | None, result: Sequence[Tensor]) -> Outputs:
        """Find the best span of each row from the W windows' logits [T, 2].

        Returns:
            `spans` [N, 2], begin and end in characters of the passage, and `log_probabilities` [N].
        """
        spans = rows.windows.spans
        best = [
            _best_span([result[i] for i in windows], [spans[i] for i in windows], self.longest)
            for windows in rows.windows.row_windows
        ]
        return {
            "spans": torch.tensor([span for span, _ in best], dtype=torch.long).reshape(-1, 2),
            "log_probabilities": torch.tensor([log_prob for _, log_prob in best]),
        }

    @torch.inference_mode()
    def loss_from(self, context: ForwardContext[SpanRows], delta: Delta, result: Sequence[Tensor]) -> float:
        """Compute the mean loss of the rows from the W windows' logits [T, 2]."""
        return float(_losses(result, context.rows).mean())

    def answers(self, backbone: Backbone, outputs: Outputs, rows: SpanRows) -> list[Answer]:
        """Cut the spans out of the passages; the answer without a passage is empty."""
        scores = outputs["log_probabilities"].exp().tolist()
        return [
            Answer(passage[begin:end], score)
            for passage, (begin, end), score in zip(rows.passages, outputs["spans"].tolist(), scores, strict=True)
        ]

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return empty texts."""
        return [""] * len(truth)


def _answer_spans(rows: LabelledTexts) -> list[tuple[AnswerSpan, ...]]:
    return [target for target in rows.targets if isinstance(target, tuple) and not isinstance(target, GenerationTarget)]


def _window_logits(backbone: Backbone, head: Head, tokens: Tokens, windows: Sequence[int]) -> list[Tensor]:
    """The head's logits [T, C] for every token of some windows, through the backbone as it is now."""
    batch = pad(backbone, tokens, windows)
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    return _unpad(head(hidden.float()), batch["attention_mask"])


def _unpad(values: Tensor, mask: Tensor) -> list[Tensor]:
    """Cut the padding off each row of a batch's values [B, T, …]."""
    return [row[:length] for row, length in zip(values, mask.sum(dim=1).tolist(), strict=True)]


def _states_on_cpu(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    return _unpad(hidden.cpu(), mask)


def _logits_on_cpu(head: Head, hidden: Tensor, mask: Tensor) -> list[Tensor]:
    return _unpad(head(hidden.float()).cpu(), mask)


def _losses(logits: Sequence[Tensor], rows: SpanRows) -> Tensor:
    """The loss of each row [N], in nats, from the logits [T, 2] of all windows."""
    by_window = dict(enumerate(logits))
    return torch.stack([_row_loss(by_window, rows, row) for row in range(len(rows.passages))])


def _row_loss(logits: Mapping[int, Tensor], rows: SpanRows, row: int) -> Tensor:
    """Return −log p(begin) − log p(end) of the right span of one passage, from logits [P, 2].

    It is 0 where the passage has no token that begins, or none that ends, an answer.
    """
    windows = rows.windows.row_windows[row]
    passage = torch.cat([logits[i] for i in windows])
    in_passage = torch.cat([rows.windows.spans[i][:, 0] != NOT_IN_PASSAGE for i in windows]).to(passage.device)
    is_answer = torch.cat([rows.answer_token_masks[i] for i in windows]).to(passage.device)
    if not is_answer.any(dim=0).all():
        return 0.0 * passage.sum()
    log_total = passage[in_passage].logsumexp(dim=0)
    log_right = passage.masked_fill(~is_answer, -torch.inf).logsumexp(dim=0)
    return (log_total - log_right).sum()


def _best_span(logits: Sequence[Tensor], spans: Sequence[Tensor], longest: int) -> ScoredSpan:
    """The most probable span of a passage that has `longest` characters at most.

    Logits and spans [T, 2] are those of the passage's windows; a span lies within one window.
    """
    best: ScoredSpan = (0, 0), CERTAIN_LOG_PROB
    in_passage = [window[:, 0] != NOT_IN_PASSAGE for window in spans]
    if not any(bool(mask.any()) for mask in in_passage):
        return best
    log_total = torch.cat([window[mask] for window, mask in zip(logits, in_passage, strict=True)]).logsumexp(dim=0)
    best_log_prob = -torch.inf
    for window_logits, window_spans, mask in zip(logits, spans, in_passage, strict=True):
        (begin, end), characters = (window_logits[mask] - log_total).unbind(dim=1), window_spans[mask]
        if not len(characters):
            continue
        lengths = characters[None, :, 1] - characters[:, None, 0]
        log_probs = (begin[:, None] + end[None, :]).masked_fill((lengths <= 0) | (lengths > longest), -torch.inf)
        log_prob = float(log_probs.max())
        if log_prob > best_log_prob:
            i, j = divmod(int(log_probs.argmax()), len(characters))
            best_log_prob, best = log_prob, ((int(characters[i, 0]), int(characters[j, 1])), log_prob)
    return best


@torch.inference_mode()
def _discriminants(context: ForwardContext[SpanRows]) -> tuple[list[Tensor], Tensor]:
    """The statistics of the passages' tokens for the closed-form head.

    Returns one inverse covariance [D, D] per shrinkage, and the distances [2, D] of the mean token that begins, and of
    the mean token that ends, an answer from the mean of all tokens.
    """
    rows, size = context.rows, context.backbone.hidden_size
    count, total, moment = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    end_sums, end_counts = torch.zeros(2, size, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    request = forward_hidden(rows.windows.tokens, _states_on_cpu, list)
    for window, hidden in iter_forward(context.backbone, context.delta, request):
        in_passage = rows.windows.spans[window][:, 0] != NOT_IN_PASSAGE
        states, is_end = hidden.double(), rows.answer_token_masks[window].double()
        passage = states[in_passage]
        count, total, moment = count + len(passage), total + passage.sum(dim=0), moment + passage.T @ passage
        end_sums, end_counts = end_sums + is_end.T @ states, end_counts + is_end.sum(dim=0)
    mean = total / max(count, 1)
    scatter = moment - count * torch.outer(mean, mean)
    inverses = [inverse_shrunk_covariance(scatter, max(count - 1, 1), shrinkage) for shrinkage in SHRINKAGES]
    return inverses, end_sums / end_counts.clamp(min=1).unsqueeze(1) - mean
