"""Generation: the frozen language model, with the delta's edits, writes the answer; no head.

It is trained by teacher forcing on the targets' tokens alone, and answers with the most probable next token each time.
A causal model reads the text in its chat template, or the text and a line break, and then writes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, tokenize, truncated_counts
from continual.generation.prompts import Generated
from continual.generation.sampling import Ids, SamplingSettings
from continual.kinds.answer import Answer
from continual.kinds.chat import (
    PromptFormat,
    Prompts,
    encode_prompts,
    encode_target,
    end_token,
    format_obstacles,
    prompt_format,
    prompt_room,
    separator,
)
from continual.kinds.kind import ForwardContext, HeadStart, Kind, Outputs, single_class
from continual.kinds.language_model import (
    BATCH,
    forward_continuation_log_prob,
    language_model_obstacle,
    model_inputs,
    token_nll,
)
from continual.kinds.writing import WRITE, make_prompts
from tasks import GenerationTarget, LabelledTexts, TaskData, TaskSpec, text_parts

PAD_TOKEN = -1  # fills up the tokens of shorter answers


@dataclass(frozen=True)
class GenerationRows:
    """N tokenized rows with their prompts and targets.

    Attributes:
        tokens: Tokens of the texts.
        truth: All reference texts of each row; empty for rows without targets.
        prompts: Input of the model for each row: the text, and of a causal model a separator.
        targets: Tokens to write for each row, the end token included; empty for rows without targets.
        sources: The texts as they were given; a pair as one text, with a space between.
        excess: The number of tokens that were left out of each prompt; empty where the texts alone tell it.
    """

    tokens: Tokens
    truth: tuple[tuple[str, ...], ...]
    prompts: tuple[Ids, ...]
    targets: tuple[Ids, ...]
    sources: tuple[str, ...]
    excess: tuple[int, ...] = ()


@final
@dataclass(frozen=True)
class Generation(Kind[GenerationRows]):
    """Generation of a text.

    Attributes:
        longest: Tokens of the longest target among the train rows, or as many as the task allows; no answer is longer.
        prompt: How texts become prompts; None for deltas that were learned on the texts as the tokenizer frames them.
    """

    metric_kind: ClassVar[str] = "generation"
    generates: ClassVar[bool] = True

    longest: int
    prompt: PromptFormat | None = None

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        """Yield why the backbone writes no text, or cannot read the task's prompts."""
        if reason := language_model_obstacle(backbone, what="generation"):
            yield reason
        else:
            yield from format_obstacles(backbone, spec)

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """Take the format of the prompts and the longest target, up to half of the positions of the backbone."""
        assert data.spec.budget  # filled in by `Stream.resolved`
        budget, kind = data.spec.budget, cls(backbone.longest_input, prompt_format(backbone, data.spec))
        targets = kind._target_ids(backbone, data.train)
        longest = budget.max_new_tokens or min(max(map(len, targets)), budget.max_length)
        return replace(kind, longest=min(longest, backbone.longest_input // 2))

    def settings(self) -> dict[str, Any]:
        """Return the longest answer and the format of the prompts."""
        return {"longest": self.longest} | ({"prompt": self.prompt.to_json()} if self.prompt else {})

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> GenerationRows:
        """Tokenize texts and targets; a causal model's prompt leaves room for the longest answer.

        A target that is too long loses tokens before its end token, which is always learned.
        """
        room = prompt_room(backbone, self.longest)
        if self.prompt is None:
            between = separator(backbone)
            tokens = tokenize(backbone, rows.texts, max_length=min(max_length, room - len(between)))
            prompts = Prompts(tuple((*ids, *between) for ids in tokens.ids), ())
        else:
            tokens = tokenize(backbone, rows.texts, max_length=max_length)
            limit = min(self.prompt.max_prompt or max_length, room)
            prompts = encode_prompts(backbone, self.prompt, rows.texts, limit=limit)
        return GenerationRows(
            tokens,
            tuple(target.references for target in _targets(rows)),
            prompts.ids,
            tuple(self._within_longest(ids) for ids in self._target_ids(backbone, rows)),
            tuple(" ".join(text_parts(text)) for text in rows.texts),
            prompts.excess,
        )

    def truncated_counts(
        self, backbone: Backbone, rows: LabelledTexts, prepared: GenerationRows, *, max_length: int
    ) -> list[int]:
        """Count the tokens of each row [N] that were cut off its text and its target."""
        of_texts = prepared.excess or truncated_counts(backbone, rows.texts, prepared.tokens)
        whole = self._target_ids(backbone, rows)
        of_targets = [len(target) - len(ids) for target, ids in zip(whole, prepared.targets, strict=True)]
        return [sum(counts) for counts in zip(of_texts, of_targets, strict=True)]

    def example(self, backbone: Backbone, rows: GenerationRows) -> Mapping[str, str]:
        """Return the prompt and the target of the first row, with the special tokens that the model reads."""
        return {
            name: backbone.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            for name, ids in (("prompt", rows.prompts[0]), ("target", rows.targets[0]))
        }

    def end_token(self, backbone: Backbone) -> int:
        """Return the token that ends an answer."""
        return end_token(backbone, self.prompt or PromptFormat())

    def _target_ids(self, backbone: Backbone, rows: LabelledTexts) -> list[Ids]:
        """Return the tokens of each row's whole target, with the end token."""
        end = self.end_token(backbone)
        return [encode_target(backbone, target.text, end=end) for target in _targets(rows)]

    def _within_longest(self, target: Ids) -> Ids:
        return target if len(target) <= self.longest else (*target[: self.longest - 1], target[-1])

    def signature_classes(self, rows: GenerationRows) -> tuple[Tensor, int]:
        """Return one class for all rows: zeros [N], and the count 1."""
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        """Return None: the language model's own head answers."""
        return None

    def closed_form_start(
        self, rows: ForwardContext[GenerationRows], held_out: ForwardContext[GenerationRows]
    ) -> HeadStart:
        """Return no head; the quality of a held-out row is the mean log probability of its target's tokens."""
        prompts, targets = held_out.rows.prompts, held_out.rows.targets
        log_probs = held_out.run(forward_continuation_log_prob(held_out.backbone, prompts, targets))
        return HeadStart(None, log_probs.double() / torch.tensor([len(target) for target in targets]))

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[GenerationRows]
    ) -> HeadStart:
        """Return the start: there is no head."""
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: GenerationRows, batch: Sequence[int]) -> Tensor:
        """Compute the mean cross entropy of all target tokens of the batch, in nats: a scalar."""
        nll, counts = token_nll(backbone, [rows.prompts[i] for i in batch], [rows.targets[i] for i in batch])
        return nll.sum() / counts.sum()

    def loss_inputs(self, backbone: Backbone, rows: GenerationRows) -> Tokens:
        """Return the prompts, of a causal model with their targets."""
        return model_inputs(backbone, rows.prompts, rows.targets)

    def row_lengths(self, rows: GenerationRows) -> list[int]:
        """Return the number of tokens of each prompt with its target."""
        return [len(prompt) + len(target) for prompt, target in zip(rows.prompts, rows.targets, strict=True)]

    def loss_weight(self, rows: GenerationRows, batch: Sequence[int]) -> float:
        """Return the number of target tokens of the batch."""
        return sum(len(rows.targets[i]) for i in batch)

    def forward_request(
        self, context: ForwardContext[GenerationRows], head: Head | None
    ) -> ForwardRequest[list[Generated]]:
        """Request the most probable answers, which rows of other tasks may share batches with."""
        prompts, sampling = context.rows.prompts, SamplingSettings(self.longest, log_probs=0)
        ends = (self.end_token(context.backbone),)
        items = make_prompts(context.backbone, context.delta, prompts, sampling, ends=ends)
        return ForwardRequest(items, [len(prompt) for prompt in prompts], WRITE, list, BATCH)

    def outputs_from(self, rows: GenerationRows, head: Head | None, result: Sequence[Generated]) -> Outputs:
        """Stack the answers: `tokens` [N, longest], padded with PAD_TOKEN, and summed `log_probabilities` [N]."""
        width = max(self.longest, *(len(answer.ids) for answer in result)) if result else self.longest
        padded = [[*answer.ids, *[PAD_TOKEN] * (width - len(answer.ids))] for answer in result]
        log_probs = [sum(token.log_prob for token in answer.log_probs) for answer in result]
        return {
            "tokens": torch.tensor(padded, dtype=torch.long).reshape(-1, width),
            "log_probabilities": torch.tensor(log_probs, dtype=torch.float32),
        }

    def loss_from(self, context: ForwardContext[GenerationRows], delta: Delta, result: Sequence[Generated]) -> float:
        """Compute the mean cross entropy of all target tokens, in a pass of their own: answers are written freely."""
        likelihood = self.likelihood_inputs(context)
        loss: float = -sum(likelihood["target_log_probabilities"]) / sum(likelihood["target_lengths"])
        return loss

    def rank(self, score: float, loss: float) -> tuple[float, float]:
        """Rank by the loss first: a score of a few written texts is mostly chance."""
        by_score, by_loss = super().rank(score, loss)
        return by_loss, by_score

    def answers(self, backbone: Backbone, outputs: Outputs, rows: GenerationRows) -> list[Answer]:
        """Decode the texts, without special tokens; the score is exp(mean of the tokens' log probabilities)."""
        ends = (PAD_TOKEN, self.end_token(backbone))
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in outputs["tokens"].tolist()]
        lengths = (outputs["tokens"] != PAD_TOKEN).sum(dim=1).clamp(min=1)
        scores = (outputs["log_probabilities"] / lengths).exp().tolist()
        return [Answer(_decode(backbone, ids), score) for ids, score in zip(answers, scores, strict=True)]

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        """Return empty texts."""
        return [""] * len(truth)

    def metric_inputs(self, rows: GenerationRows, answers: Sequence[Answer]) -> Mapping[str, Any]:
        """Return the texts that were answered."""
        return {"sources": rows.sources}

    def likelihood_inputs(self, context: ForwardContext[GenerationRows]) -> Mapping[str, Any]:
        """Return the log probability of each target [N], in nats, and its number of tokens."""
        prompts, targets = context.rows.prompts, context.rows.targets
        log_probs = context.run(forward_continuation_log_prob(context.backbone, prompts, targets))
        return {"target_log_probabilities": log_probs.tolist(), "target_lengths": [*map(len, targets)]}

    def baseline_answers(self, train: LabelledTexts, rows: GenerationRows) -> list[Answer]:
        """Return the texts themselves."""
        return [Answer(source, None) for source in rows.sources]


def _targets(rows: LabelledTexts) -> list[GenerationTarget]:
    return [target for target in rows.targets if isinstance(target, GenerationTarget)]


def _decode(backbone: Backbone, ids: Sequence[int]) -> str:
    """The text of tokens, without special ones."""
    text: str = backbone.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
