"""Generation: the frozen language model writes the answer, through the delta's edits; there is no head.

It is trained by teacher forcing on the targets' tokens alone, and answers with the most probable next token each time.
A causal model reads the text, a line break, and then writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features.forward import ForwardRequest
from continual.features.tokens import Tokens, replace_surrogates, tokenize
from continual.kinds.kind import Answer, ForwardContext, HeadStart, Kind, Outputs, TokenCallback, single_class
from continual.kinds.language_model import (
    BATCH,
    Ids,
    forward_continuation_log_prob,
    generate_greedy,
    language_model_obstacle,
    model_inputs,
    token_nll,
)
from tasks import GenerationTarget, LabelledTexts, TaskData, TaskSpec

PAD_TOKEN = -1  # fills up the tokens of shorter answers

Generated = tuple[Ids, float]  # the tokens of an answer, and the logarithm of their probability


@dataclass(frozen=True)
class GenerationRows:
    """Rows with what the model reads and what it should write, as tokens. truth: all texts that would be right."""

    tokens: Tokens
    truth: tuple[tuple[str, ...], ...]
    prompts: tuple[Ids, ...]
    targets: tuple[Ids, ...]


@final
@dataclass(frozen=True)
class Generation(Kind[GenerationRows]):
    """longest: tokens of the longest target among the train rows; no answer is longer."""

    metric_kind: ClassVar[str] = "generation"
    generates: ClassVar[bool] = True

    longest: int

    @classmethod
    def incompatibilities(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        if reason := language_model_obstacle(backbone, what="generation"):
            yield reason

    @classmethod
    def from_data(cls, backbone: Backbone, data: TaskData) -> Self:
        """No more tokens are written than `max_length`, or half of what the positions of a causal model take."""
        assert data.spec.budget  # what `Stream.resolved` fills in
        most = max(len(_target_ids(backbone, wording.text)) for wording in _wordings(data.train))
        return cls(min(most, data.spec.budget.max_length, backbone.longest_input // 2))

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: LabelledTexts, *, max_length: int) -> GenerationRows:
        tail = _separator(backbone)
        if backbone.architecture == "causal":  # text and answer share the positions
            max_length = min(max_length, backbone.longest_input - self.longest - len(tail))
        tokens, wordings = tokenize(backbone, rows.texts, max_length=max_length), _wordings(rows)
        return GenerationRows(
            tokens,
            tuple(wording.references for wording in wordings),
            tuple((*ids, *tail) for ids in tokens.ids),
            tuple(_target_ids(backbone, wording.text)[: self.longest] for wording in wordings),
        )

    def classes(self, rows: GenerationRows) -> tuple[Tensor, int]:
        return single_class(rows)

    def zero_head(self, backbone: Backbone) -> Head | None:
        return None

    def closed_form_start(
        self, rows: ForwardContext[GenerationRows], held_out: ForwardContext[GenerationRows]
    ) -> HeadStart:
        """No head; the quality of a held-out row is the mean log probability of its target's tokens."""
        prompts, targets = held_out.rows.prompts, held_out.rows.targets
        sums = held_out.read(forward_continuation_log_prob(held_out.backbone, prompts, targets))
        return HeadStart(None, sums.double() / torch.tensor([len(target) for target in targets]))

    def with_transferred_head(
        self, start: HeadStart, head: Head, held_out: ForwardContext[GenerationRows]
    ) -> HeadStart:
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: GenerationRows, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats of the targets' tokens, every token alike."""
        found, counts = token_nll(backbone, [rows.prompts[i] for i in batch], [rows.targets[i] for i in batch])
        return found.sum() / counts.sum()

    def loss_inputs(self, backbone: Backbone, rows: GenerationRows) -> Tokens:
        return model_inputs(backbone, rows.prompts, rows.targets)

    def loss_weight(self, rows: GenerationRows, batch: Sequence[int]) -> float:
        return sum(len(rows.targets[i]) for i in batch)

    def forward_request(
        self, seen: ForwardContext[GenerationRows], head: Head | None
    ) -> ForwardRequest[list[Generated]]:
        prompts = seen.rows.prompts
        heard = seen.on_token or [None] * len(prompts)
        items = [_Begun(prompt, self.longest, hear) for prompt, hear in zip(prompts, heard, strict=True)]
        return ForwardRequest(items, [len(prompt) for prompt in prompts], _answered, list, BATCH, self.longest)

    def outputs_from(self, rows: GenerationRows, head: Head | None, found: Sequence[Generated]) -> Outputs:
        """tokens [N, longest] and their log_probabilities [N], summed."""
        tokens = [[*ids, *[PAD_TOKEN] * (self.longest - len(ids))] for ids, _ in found]
        sure = torch.tensor([log_probability for _, log_probability in found])
        return {"tokens": torch.tensor(tokens, dtype=torch.long).reshape(-1, self.longest), "log_probabilities": sure}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: GenerationRows) -> list[Answer]:
        """The text written, without special tokens; its score is the probability of all of its tokens."""
        ids = [[token for token in row if token != PAD_TOKEN] for row in outputs["tokens"].tolist()]
        scores = outputs["log_probabilities"].exp().tolist()
        return [Answer(_text(backbone, own), score) for own, score in zip(ids, scores, strict=True)]

    def misrouted_answers(self, truth: Sequence[Any]) -> list[Any]:
        return [""] * len(truth)


def _wordings(rows: LabelledTexts) -> list[GenerationTarget]:
    return [target for target in rows.targets if isinstance(target, GenerationTarget)]


def _separator(backbone: Backbone) -> Ids:
    """What stands between a text and its answer; an encoder-decoder keeps them apart by itself."""
    if backbone.architecture != "causal":
        return ()
    ids = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"]
    return tuple(ids) or (backbone.tokenizer.eos_token_id,)


def _target_ids(backbone: Backbone, text: str) -> Ids:
    """The tokens to write, with the end token."""
    tokenizer = backbone.tokenizer
    if backbone.architecture == "causal":
        return (*tokenizer(replace_surrogates(text), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    return tuple(tokenizer(text_target=replace_surrogates(text))["input_ids"])


@dataclass(frozen=True)
class _Begun:
    """A prompt, how many tokens its answer may have, and who is told of it while it is written."""

    prompt: Ids
    longest: int
    hear: TokenCallback | None


def _answered(backbone: Backbone, items: Sequence[_Begun]) -> list[Generated]:
    """What is written behind prompts, each as long as it may be; no row depends on how long others go on."""
    prompts = [item.prompt for item in items]

    def tell(so_far: Sequence[Ids]) -> None:
        for item, ids in zip(items, so_far, strict=True):
            if item.hear:
                item.hear(_text(backbone, ids[: item.longest]))

    telling = tell if any(item.hear for item in items) else None
    found = generate_greedy(backbone, prompts, longest=max(item.longest for item in items), tell=telling)
    own = [ids[: item.longest] for item, ids in zip(items, found, strict=True)]
    sums: list[float] = (-token_nll(backbone, prompts, own)[0].sum(dim=1)).tolist()
    return list(zip(own, sums, strict=True))


def _text(backbone: Backbone, ids: Sequence[int]) -> str:
    """What tokens say, without special ones."""
    text: str = backbone.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
