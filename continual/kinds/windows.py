"""Split a passage into overlapping windows, each read behind its question, that together cover it.

Shapes: T tokens of one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.features.tokens import Tokens, replace_surrogates
from tasks import AnswerSpan, Text, text_parts

OVERLAP_DIVISOR = 4  # one part in so many of a window is repeated at the beginning of the next one
NOT_IN_PASSAGE = -1


@dataclass(frozen=True)
class Windows:
    """The windows of N passages, one passage after the other.

    Attributes:
        tokens: Tokens of every window.
        spans: For each window, begin and end of its tokens in the passage, in characters [T, 2]; NOT_IN_PASSAGE for
            tokens of the question and special tokens.
        row_windows: The indices of each row's windows.
    """

    tokens: Tokens
    spans: tuple[Tensor, ...]
    row_windows: tuple[range, ...]

    def window_indices(self, rows: Sequence[int]) -> list[int]:
        """Return the indices of the windows of the given rows, one row after the other."""
        return [window for row in rows for window in self.row_windows[row]]


def split_into_windows(backbone: Backbone, texts: Sequence[Text], *, max_length: int) -> Windows:
    """Tokenize questions and passages into windows.

    Args:
        backbone: The backbone whose tokenizer is used.
        texts: Pairs of question and passage; a single text is a question without a passage.
        max_length: Largest number of tokens of a window. The question takes a third of it at most.
    """
    limit, question_limit = min(max_length, backbone.longest_input), _question_limit(backbone, max_length)
    special_tokens = backbone.tokenizer.num_special_tokens_to_add(pair=True)
    ids: list[tuple[int, ...]] = []
    types: list[tuple[int, ...]] = []
    spans: list[Tensor] = []
    row_windows: list[range] = []
    for text in texts:
        question, passage = (*text_parts(text), "")[:2]
        question = truncate_text(backbone, question, question_limit)
        passage_tokens = limit - special_tokens - len(_encode_with_offsets(backbone, question)["input_ids"])
        encoded = backbone.tokenizer(
            replace_surrogates(question),
            replace_surrogates(passage),
            truncation="only_second",
            max_length=limit,
            stride=max(passage_tokens // OVERLAP_DIVISOR, 0),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        row_windows.append(range(len(ids), len(ids) + len(encoded["input_ids"])))
        ids += map(tuple, encoded["input_ids"])
        if "embed.type" in backbone.family.stack.sites:
            types += map(tuple, encoded.get("token_type_ids", ()))
        spans += [
            _passage_spans(offsets, encoded.sequence_ids(window))
            for window, offsets in enumerate(encoded["offset_mapping"])
        ]
    return Windows(Tokens(tuple(ids), tuple(types) or None), tuple(spans), tuple(row_windows))


def question_excess(backbone: Backbone, text: Text, *, max_length: int) -> int:
    """Return the number of tokens of a question that windows of `max_length` tokens leave out."""
    tokens = len(_encode_with_offsets(backbone, text_parts(text)[0])["input_ids"])
    return max(tokens - _question_limit(backbone, max_length), 0)


def _question_limit(backbone: Backbone, max_length: int) -> int:
    return min(max_length, backbone.longest_input) // 3


def truncate_text(backbone: Backbone, text: str, max_tokens: int) -> str:
    """Return the beginning of a text that is at most `max_tokens` tokens, special tokens not counted."""
    offsets = _encode_with_offsets(backbone, text)["offset_mapping"]
    if len(offsets) <= max_tokens:
        return text
    return text[: offsets[max_tokens - 1][1]] if max_tokens > 0 else ""


def _encode_with_offsets(backbone: Backbone, text: str) -> dict[str, list[Any]]:
    encoded: dict[str, list[Any]] = backbone.tokenizer(
        replace_surrogates(text), add_special_tokens=False, return_offsets_mapping=True
    )
    return encoded


def _passage_spans(offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]) -> Tensor:
    """The spans [T, 2] of one window; `sequences` is 1 for tokens of the passage."""
    return torch.tensor(
        [
            span if sequence == 1 and span[1] > span[0] else (NOT_IN_PASSAGE, NOT_IN_PASSAGE)
            for span, sequence in zip(offsets, sequences, strict=True)
        ]
    ).reshape(-1, 2)


def answer_token_masks(spans: Tensor, answers: Sequence[AnswerSpan]) -> Tensor:
    """Mark the tokens of a window that begin an answer (column 0) and that end one (column 1).

    Args:
        spans: Begin and end of the window's tokens in the passage [T, 2], in characters.
        answers: The right answers; those without a start are left out.

    Returns:
        A mask [T, 2].
    """
    begins, ends = spans.unbind(dim=1)
    mask = torch.zeros(len(spans), 2, dtype=torch.bool)
    for text, start in answers:
        if start is not None:
            mask[:, 0] |= (begins <= start) & (start < ends)
            mask[:, 1] |= (begins < start + len(text)) & (start + len(text) <= ends)
    return mask
