"""Tokenize texts, and batch them by length."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from continual.backbones.backbone import Backbone
from continual.deltas import MethodSettings
from continual.errors import MethodError
from tasks import Text

# Rows are sorted by length within so many batches: little padding, while what meets in a batch stays nearly random.
LENGTH_SORT_WINDOW = 50
INFERENCE_BATCH = 64
MIN_TEXT_TOKENS = 8  # tokens that must be left for a text


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts, not padded, and their types where the tokenizer has types."""

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]

    def take(self, indices: Sequence[int]) -> "Tokens":
        """The tokens of the chosen texts."""
        types = None if self.types is None else tuple(self.types[i] for i in indices)
        return Tokens(tuple(self.ids[i] for i in indices), types)


def concat_tokens(parts: Sequence[Tokens]) -> Tokens:
    """The tokens of all parts, one after the other."""
    types = None if parts[0].types is None else tuple(row for part in parts for row in part.types or ())
    return Tokens(tuple(row for part in parts for row in part.ids), types)


def reserve_tokens(backbone: Backbone, *possible: MethodSettings) -> Backbone:
    """The backbone for texts that any of these methods may add tokens to.

    Raises MethodError where next to nothing is left for a text.
    """
    reserved = max(settings.added_tokens for settings in possible)
    roomy, whole = replace(backbone, reserved_tokens=reserved), replace(backbone, reserved_tokens=0).longest_input
    if roomy.longest_input < MIN_TEXT_TOKENS:
        raise MethodError(
            f"the method adds {reserved} tokens to every text and backbone {backbone.name!r} takes {whole} in all; "
            f"use a length of {max(whole - MIN_TEXT_TOKENS, 0)} at most"
        )
    return roomy


def tokenize(backbone: Backbone, texts: Sequence[Text], *, max_length: int) -> Tokens:
    """Token ids of texts and pairs of texts; longer ones are cut at `max_length` tokens (in a pair the longer side)."""
    if not texts:
        return Tokens((), None)
    parts = [[replace_surrogates(part) for part in ((text,) if isinstance(text, str) else text)] for text in texts]
    if len({len(part) for part in parts}) > 1:  # the tokenizer takes texts or pairs, not both at once
        alone = [tokenize(backbone, [text], max_length=max_length) for text in texts]
        types = None if alone[0].types is None else tuple(one.types[0] for one in alone if one.types)
        return Tokens(tuple(one.ids[0] for one in alone), types)
    columns = [list(column) for column in zip(*parts, strict=True)]
    limit = min(max_length, backbone.longest_input)
    encoded = backbone.tokenizer(*columns, truncation=True, max_length=limit)
    # A tokenizer that frames no text makes nothing of an empty one, which still has to have a state.
    ids = tuple(tuple(row) or (backbone.tokenizer.eos_token_id,) for row in encoded["input_ids"])
    types = encoded.get("token_type_ids") if "embed.type" in backbone.family.stack.sites else None
    return Tokens(ids, None if types is None else tuple(map(tuple, types)))


def replace_surrogates(text: str) -> str:
    """The text with half surrogate pairs, which JSON may hold and no tokenizer takes, as question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def pad(backbone: Backbone, tokens: Tokens, indices: Sequence[int]) -> dict[str, Tensor]:
    """The model's arguments for the chosen texts: ids, mask and types, each [B, T], T the longest of them."""
    width = max(len(tokens.ids[i]) for i in indices)

    def filled(rows: Iterable[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=backbone.device)

    batch = {
        "input_ids": filled((tokens.ids[i] for i in indices), backbone.tokenizer.pad_token_id),
        "attention_mask": filled(([1] * len(tokens.ids[i]) for i in indices), 0),
    }
    if tokens.types is not None:
        types = tokens.types
        batch["token_type_ids"] = filled((types[i] for i in indices), 0)
    return batch


def shuffled_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Batches of one epoch: every row once, rows of like length together, batches in random order."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * LENGTH_SORT_WINDOW
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda i: lengths[i])
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Sequence[int], batch_size: int = INFERENCE_BATCH) -> Iterator[list[int]]:
    """Batches for inference: every row once, from the shortest to the longest."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
