"""Passages in windows: overlapping pieces, each read behind its question, that together show the whole passage.

Shapes: T tokens of one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.features.tokens import Tokens, replace_surrogates
from tasks import AnswerSpan, Text

OVERLAP_DIVISOR = 4  # the share of a window that the next one shows again is one in so many
NOT_IN_PASSAGE = -1


@dataclass(frozen=True)
class Windows:
    """The windows of N passages, one after the other.

    tokens: of every window · spans: for each, where its tokens stand in the passage, in characters [T, 2], NOT_PASSAGE
    for those of the question and the frame · of_rows: the numbers of each row's windows.
    """

    tokens: Tokens
    spans: tuple[Tensor, ...]
    of_rows: tuple[range, ...]

    def of(self, rows: Sequence[int]) -> list[int]:
        """The windows of the chosen rows, one row after the other."""
        return [window for row in rows for window in self.of_rows[row]]


def split_into_windows(backbone: Backbone, texts: Sequence[Text], *, max_length: int) -> Windows:
    """Question and passage in windows of at most `max_length` tokens, of which the question keeps up to a third.

    A single text is a question without a passage.
    """
    limit = min(max_length, backbone.longest_input)
    frame = backbone.tokenizer.num_special_tokens_to_add(pair=True)
    ids: list[tuple[int, ...]] = []
    types: list[tuple[int, ...]] = []
    spans: list[Tensor] = []
    of_rows: list[range] = []
    for text in texts:
        question, passage = (text, "") if isinstance(text, str) else text
        question = truncate_text(backbone, question, limit // 3)
        room = limit - frame - len(_plain(backbone, question)["input_ids"])
        encoded = backbone.tokenizer(
            replace_surrogates(question),
            replace_surrogates(passage),
            truncation="only_second",
            max_length=limit,
            stride=max(room // OVERLAP_DIVISOR, 0),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_rows.append(range(len(ids), len(ids) + len(encoded["input_ids"])))
        ids += map(tuple, encoded["input_ids"])
        if "embed.type" in backbone.family.stack.sites:
            types += map(tuple, encoded.get("token_type_ids", ()))
        spans += [
            _spans(offsets, encoded.sequence_ids(window)) for window, offsets in enumerate(encoded["offset_mapping"])
        ]
    return Windows(Tokens(tuple(ids), tuple(types) or None), tuple(spans), tuple(of_rows))


def truncate_text(backbone: Backbone, text: str, tokens: int) -> str:
    """The beginning of a text that is so many tokens, without any frame."""
    offsets = _plain(backbone, text)["offset_mapping"]
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]] if tokens > 0 else ""


def _plain(backbone: Backbone, text: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = backbone.tokenizer(
        replace_surrogates(text), add_special_tokens=False, return_offsets_mapping=True
    )
    return found


def _spans(offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]) -> Tensor:
    return torch.tensor(
        [
            span if sequence == 1 and span[1] > span[0] else (NOT_IN_PASSAGE, NOT_IN_PASSAGE)
            for span, sequence in zip(offsets, sequences, strict=True)
        ]
    ).reshape(-1, 2)


def answer_token_masks(spans: Tensor, quotes: Sequence[AnswerSpan]) -> Tensor:
    """Which tokens [T, 2] begin an answer, and which end one."""
    begins, ends = spans.unbind(dim=1)
    marks = torch.zeros(len(spans), 2, dtype=torch.bool)
    for text, start in quotes:
        if start is not None:
            marks[:, 0] |= (begins <= start) & (start < ends)
            marks[:, 1] |= (begins < start + len(text)) & (start + len(text) <= ends)
    return marks
