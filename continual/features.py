"""From texts to vectors: tokens, batches of like length, pooled hidden states.

Shapes: B batch, T tokens, D hidden size, N texts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from continual.backbone import Backbone
from continual.deltas import Delta, MethodSettings
from continual.errors import MethodError
from continual.hub import Pooling
from continual.reading import ForwardRequest, run_forward
from tasks import Text

# Rows are sorted by length within so many batches: little padding, while what meets in a batch stays nearly random.
LENGTH_SORT_WINDOW = 50
INFERENCE_BATCH = 64
MIN_TEXT_TOKENS = 8  # tokens that must be left for a text

R = TypeVar("R")
HiddenStateReader = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""What is kept of each text, on the CPU, given the states [B, T, D] of some and their mask [B, T]."""


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


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector [B, D] of each text's hidden states [B, T, D]: their mean over its own tokens, or the first one's."""
    if pooling == "cls":
        return hidden[:, 0].float()
    weight = mask.unsqueeze(-1).float()
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1)


def pooled_features(backbone: Backbone, batch: dict[str, Tensor], pooling: Pooling) -> Tensor:
    """Pooled vectors [B, D] of a padded batch through the backbone as it is now, with what is attached."""
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    return pool(hidden, batch["attention_mask"], pooling)


def forward_hidden(tokens: Tokens, look: HiddenStateReader, gather: Callable[[list[Tensor]], R]) -> ForwardRequest[R]:
    """To read texts, and to look at their last hidden states."""
    types = tokens.types or [None] * len(tokens)
    items = [(ids, own, look) for ids, own in zip(tokens.ids, types, strict=True)]
    return ForwardRequest(items, tokens.lengths, _looked_at, gather, INFERENCE_BATCH)


def _looked_at(
    backbone: Backbone, items: Sequence[tuple[tuple[int, ...], tuple[int, ...] | None, HiddenStateReader]]
) -> list[Tensor]:
    """What each text's look keeps of it; texts of the same look are looked at together."""
    ids, types, looks = zip(*items, strict=True)
    batch = pad(backbone, Tokens(ids, None if None in types else types), range(len(items)))
    with backbone.autocast():
        hidden = backbone.hidden_states(batch)
    found: dict[int, Tensor] = {}
    for look in dict.fromkeys(looks):
        rows = [i for i, own in enumerate(looks) if own is look]
        found |= zip(rows, look(hidden[rows], batch["attention_mask"][rows]), strict=True)
    return [found[i] for i in range(len(items))]


def _pooled_on_cpu(hidden: Tensor, mask: Tensor, *, pooling: Pooling) -> Sequence[Tensor]:
    return pool(hidden, mask, pooling).cpu().unbind()


_POOLED: Mapping[Pooling, HiddenStateReader] = {
    "mean": partial(_pooled_on_cpu, pooling="mean"),
    "cls": partial(_pooled_on_cpu, pooling="cls"),
}


def forward_pooled(backbone: Backbone, tokens: Tokens, pooling: Pooling) -> ForwardRequest[Tensor]:
    """To read the pooled vectors [N, D] of texts."""
    nothing = torch.empty(0, backbone.hidden_size)
    return forward_hidden(tokens, _POOLED[pooling], lambda found: torch.stack(found) if found else nothing)


def encode(backbone: Backbone, tokens: Tokens, *, delta: Delta | None = None) -> Tensor:
    """Pooled vectors [N, D] of all texts, on the CPU, through `delta` or, without one, the frozen backbone."""
    pooling = delta.head.pooling if delta and delta.head else backbone.pooling
    return run_forward(backbone, delta, forward_pooled(backbone, tokens, pooling))
