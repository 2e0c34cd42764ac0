"""Generation: the frozen language model writes the answer, through the delta's edits; there is no head.

It is trained by teacher forcing on the targets' tokens alone, and answers with the most probable next token each time.
A causal model reads the text, a line break, and then writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, Head
from continual.features import Tokens, tokenize, utf8
from continual.kinds.kind import Answer, Hear, Kind, Outputs, Seen, Start, one_class
from continual.kinds.language import BATCH, Ids, continuations, losses, no_language_model, read, written
from continual.reading import Reading
from tasks import Rows, TaskData, TaskSpec, Wording

NOTHING = -1  # fills up the tokens of shorter answers

Written = tuple[Ids, float]  # the tokens of an answer, and the logarithm of their probability


@dataclass(frozen=True)
class Exchanges:
    """Rows with what the model reads and what it should write, as tokens. truth: all texts that would be right."""

    tokens: Tokens
    truth: tuple[tuple[str, ...], ...]
    prompts: tuple[Ids, ...]
    targets: tuple[Ids, ...]


@final
@dataclass(frozen=True)
class Generation(Kind[Exchanges]):
    """longest: tokens of the longest target among the train rows; no answer is longer."""

    scored: ClassVar[str] = "generation"
    generates: ClassVar[bool] = True

    longest: int

    @classmethod
    def misfits(cls, backbone: Backbone, spec: TaskSpec) -> Iterator[str]:
        if reason := no_language_model(backbone, what="generation"):
            yield reason

    @classmethod
    def of(cls, backbone: Backbone, data: TaskData) -> Self:
        """No more tokens are written than `max_length`, or half of what the positions of a causal model take."""
        assert data.spec.budget  # what `Stream.resolved` fills in
        most = max(len(_target_ids(backbone, wording.text)) for wording in _wordings(data.train))
        return cls(min(most, data.spec.budget.max_length, backbone.longest_input // 2))

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self, backbone: Backbone, rows: Rows, *, max_length: int) -> Exchanges:
        tail = _separator(backbone)
        if backbone.architecture == "causal":  # text and answer share the positions
            max_length = min(max_length, backbone.longest_input - self.longest - len(tail))
        tokens, wordings = tokenize(backbone, rows.texts, max_length=max_length), _wordings(rows)
        return Exchanges(
            tokens,
            tuple(wording.references for wording in wordings),
            tuple((*ids, *tail) for ids in tokens.ids),
            tuple(_target_ids(backbone, wording.text)[: self.longest] for wording in wordings),
        )

    def classes(self, rows: Exchanges) -> tuple[Tensor, int]:
        return one_class(rows)

    def blank(self, backbone: Backbone) -> Head | None:
        return None

    def start(self, rows: Seen[Exchanges], held_out: Seen[Exchanges]) -> Start:
        """No head; the quality of a held-out row is the mean log probability of its target's tokens."""
        prompts, targets = held_out.rows.prompts, held_out.rows.targets
        sums = held_out.read(continuations(held_out.backbone, prompts, targets))
        return Start(None, sums.double() / torch.tensor([len(target) for target in targets]))

    def carried(self, start: Start, head: Head, held_out: Seen[Exchanges]) -> Start:
        return start

    def loss(self, backbone: Backbone, delta: Delta, rows: Exchanges, batch: Sequence[int]) -> Tensor:
        """Mean cross entropy in nats of the targets' tokens, every token alike."""
        found, counts = losses(backbone, [rows.prompts[i] for i in batch], [rows.targets[i] for i in batch])
        return found.sum() / counts.sum()

    def reads(self, backbone: Backbone, rows: Exchanges) -> Tokens:
        return read(backbone, rows.prompts, rows.targets)

    def weight(self, rows: Exchanges, batch: Sequence[int]) -> float:
        return sum(len(rows.targets[i]) for i in batch)

    def reading(self, seen: Seen[Exchanges], head: Head | None) -> Reading[list[Written]]:
        prompts = seen.rows.prompts
        heard = seen.hear or [None] * len(prompts)
        items = [_Begun(prompt, self.longest, hear) for prompt, hear in zip(prompts, heard, strict=True)]
        return Reading(items, [len(prompt) for prompt in prompts], _answered, list, BATCH, self.longest)

    def outputs_of(self, rows: Exchanges, head: Head | None, found: Sequence[Written]) -> Outputs:
        """tokens [N, longest] and their log_probabilities [N], summed."""
        tokens = [[*ids, *[NOTHING] * (self.longest - len(ids))] for ids, _ in found]
        sure = torch.tensor([log_probability for _, log_probability in found])
        return {"tokens": torch.tensor(tokens, dtype=torch.long).reshape(-1, self.longest), "log_probabilities": sure}

    def answers(self, backbone: Backbone, outputs: Outputs, rows: Exchanges) -> list[Answer]:
        """The text written, without special tokens; its score is the probability of all of its tokens."""
        ids = [[token for token in row if token != NOTHING] for row in outputs["tokens"].tolist()]
        scores = outputs["log_probabilities"].exp().tolist()
        return [Answer(_text(backbone, own), score) for own, score in zip(ids, scores, strict=True)]

    def wrong(self, truth: Sequence[Any]) -> list[Any]:
        return [""] * len(truth)


def _wordings(rows: Rows) -> list[Wording]:
    return [target for target in rows.targets if isinstance(target, Wording)]


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
        return (*tokenizer(utf8(text), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    return tuple(tokenizer(text_target=utf8(text))["input_ids"])


@dataclass(frozen=True)
class _Begun:
    """A prompt, how many tokens its answer may have, and who is told of it while it is written."""

    prompt: Ids
    longest: int
    hear: Hear | None


def _answered(backbone: Backbone, items: Sequence[_Begun]) -> list[Written]:
    """What is written behind prompts, each as long as it may be; no row depends on how long others go on."""
    prompts = [item.prompt for item in items]

    def tell(so_far: Sequence[Ids]) -> None:
        for item, ids in zip(items, so_far, strict=True):
            if item.hear:
                item.hear(_text(backbone, ids[: item.longest]))

    telling = tell if any(item.hear for item in items) else None
    found = written(backbone, prompts, longest=max(item.longest for item in items), tell=telling)
    own = [ids[: item.longest] for item, ids in zip(items, found, strict=True)]
    sums: list[float] = (-losses(backbone, prompts, own)[0].sum(dim=1)).tolist()
    return list(zip(own, sums, strict=True))


def _text(backbone: Backbone, ids: Sequence[int]) -> str:
    """What tokens say, without special ones."""
    text: str = backbone.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
