"""Tokenize texts, and batch them by length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import MethodSettings
from continual.errors import MethodError
from tasks import Text, text_parts

# Rows are sorted by length within windows of so many batches: little padding, and batches stay nearly random.
LENGTH_SORT_WINDOW = 50
INFERENCE_BATCH = 64
MIN_TEXT_TOKENS = 8  # tokens of a text beside those that a method adds


@dataclass(frozen=True)
class Tokens:
    """Tokens of N texts, not padded.

    Attributes:
        ids: Token ids of each text.
        types: Token types of each text; None where the backbone has none.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text."""
        return [len(ids) for ids in self.ids]

    def take(self, indices: Sequence[int]) -> "Tokens":
        """Select texts by index."""
        types = None if self.types is None else tuple(self.types[i] for i in indices)
        return Tokens(tuple(self.ids[i] for i in indices), types)


def concat_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Concatenate the texts of several parts."""
    types = None if parts[0].types is None else tuple(row for part in parts for row in part.types or ())
    return Tokens(tuple(row for part in parts for row in part.ids), types)


def reserve_tokens(backbone: Backbone, *methods: MethodSettings) -> Backbone:
    """Return the backbone with positions reserved for the tokens that any of the methods adds to a text.

    Raises:
        MethodError: Fewer than MIN_TEXT_TOKENS positions are left for a text.
    """
    reserved = max(settings.added_tokens for settings in methods)
    backbone_with_reserve = replace(backbone, reserved_tokens=reserved)
    all_positions = replace(backbone, reserved_tokens=0).longest_input
    if backbone_with_reserve.longest_input < MIN_TEXT_TOKENS:
        raise MethodError(
            f"the method adds {reserved} tokens to every text and backbone {backbone.name!r} takes {all_positions} in "
            f"all; use a length of {max(all_positions - MIN_TEXT_TOKENS, 0)} at most"
        )
    return backbone_with_reserve


def tokenize(backbone: Backbone, texts: Sequence[Text], *, max_length: int) -> Tokens:
    """Tokenize texts and pairs of texts.

    Args:
        backbone: The backbone whose tokenizer is used.
        texts: N texts or pairs, in any mixture.
        max_length: Largest number of tokens; longer texts are truncated, in a pair the longer side first.
    """
    if not texts:
        return Tokens((), None)
    parts = [[replace_surrogates(part) for part in text_parts(text)] for text in texts]
    if len({len(part) for part in parts}) > 1:  # the tokenizer takes texts or pairs, not both at once
        singles = [tokenize(backbone, [text], max_length=max_length) for text in texts]
        types = None if singles[0].types is None else tuple(single.types[0] for single in singles if single.types)
        return Tokens(tuple(single.ids[0] for single in singles), types)
    columns = [list(column) for column in zip(*parts, strict=True)]
    limit = min(max_length, backbone.longest_input)
    encoded = backbone.tokenizer(*columns, truncation=True, max_length=limit)
    # Without special tokens an empty text has no token at all, and it still needs a hidden state.
    ids = tuple(tuple(row) or (backbone.tokenizer.eos_token_id,) for row in encoded["input_ids"])
    types = encoded.get("token_type_ids") if "embed.type" in backbone.family.stack.sites else None
    return Tokens(ids, None if types is None else tuple(map(tuple, types)))


def truncated_counts(backbone: Backbone, texts: Sequence[Text], tokens: Tokens) -> list[int]:
    """Count the tokens that `tokenize` cut off each text [N].

    Only the texts of the most tokens can have been cut, and are tokenized again.
    """
    longest, counts = max(tokens.lengths, default=0), [0] * len(tokens)
    for i, length in enumerate(tokens.lengths):
        if length == longest:
            parts = map(replace_surrogates, text_parts(texts[i]))
            whole = backbone.tokenizer(*parts, verbose=False)["input_ids"]
            counts[i] = max(len(whole) - length, 0)
    return counts


def replace_surrogates(text: str) -> str:
    """Replace half surrogate pairs, which JSON may hold and no tokenizer takes, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pad(backbone: Backbone, tokens: Tokens, indices: Sequence[int]) -> dict[str, Tensor]:
    """Pad texts on the right to one batch.

    Args:
        backbone: The backbone, for its padding token and device.
        tokens: Tokens of the texts.
        indices: Indices of the B texts of the batch.

    Returns:
        The model's arguments `input_ids`, `attention_mask` and, if there are types, `token_type_ids`, each [B, T] with
        T the length of the longest text.
    """
    width = max(len(tokens.ids[i]) for i in indices)

    def padded(rows: Iterable[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=backbone.device)

    batch = {
        "input_ids": padded((tokens.ids[i] for i in indices), backbone.tokenizer.pad_token_id),
        "attention_mask": padded(([1] * len(tokens.ids[i]) for i in indices), 0),
    }
    if tokens.types is not None:
        types = tokens.types
        batch["token_type_ids"] = padded((types[i] for i in indices), 0)
    return batch


def shuffled_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Return the batches of one epoch: rows of similar length together, batches in random order."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * LENGTH_SORT_WINDOW
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: lengths[i])
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Sequence[int], batch_size: int = INFERENCE_BATCH) -> Iterator[list[int]]:
    """Yield batches for inference: every row once, from the shortest to the longest."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
