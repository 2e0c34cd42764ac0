"""Keys and values of the tokens so far, for a batch whose rows join and leave.

The rows end at the right edge, where the next token of each is written, and a shorter one begins further right. What
lies before a row's first token is never attended to.

Shapes: B rows, H heads, W columns (tokens of the longest row), S tokens of the longest encoded text, d the size of a
head.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

MIN_SPARE_COLUMNS = 32  # columns that are added when the last one is in use


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers' classes are not typed
    """A layer's keys and values [B, H, W, d] in memory with spare columns, so that a token is written in place.

    `DynamicLayer` copies all columns at every token.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin without any column."""
        self.hold(key_states, value_states, 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, H, T, d]; return those of all columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width, added = self.keys.shape[2], key_states.shape[2]
        if width == 0:  # the first pass: nothing need be copied
            self.hold(key_states, value_states, added)
            return self.keys, self.values
        if width + added > self._key_memory.shape[2]:
            columns = width + max(added, MIN_SPARE_COLUMNS, width // 4)
            self.hold(_widened(self.keys, columns), _widened(self.values, columns), width)
        self._key_memory[:, :, width : width + added] = key_states
        self._value_memory[:, :, width : width + added] = value_states
        self.hold(self._key_memory, self._value_memory, width + added)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor, width: int) -> None:
        """Hold keys and values [B, H, W + spare, d] in place of others; W = `width` columns are in use."""
        self.device, self.is_initialized = keys.device, True
        self._key_memory, self._value_memory = keys, values
        self.keys, self.values = keys[:, :, :width], values[:, :, :width]


def _widened(states: Tensor, columns: int) -> Tensor:
    """Return a copy [B, H, columns, d] of states [B, H, W, d]; the columns behind W hold anything."""
    memory = states.new_empty((*states.shape[:2], columns, states.shape[3]))
    memory[:, :, : states.shape[2]] = states
    return memory


@dataclass(frozen=True, eq=False)
class KeyValues:
    """The cache of a batch.

    Attributes:
        cache: As the model takes it: of an encoder-decoder, of self-attention and of cross-attention.
        starts: Column [B] of each row's first token.
        encoded: Number [B] of encoded tokens of each row, which begin at the left; None without an encoder.
    """

    cache: Cache
    starts: Tensor
    encoded: Tensor | None = None

    @property
    def width(self) -> int:
        """W."""
        return int(self.cache.get_seq_length())

    @property
    def encoded_width(self) -> int:
        """S."""
        return 0 if self.encoded is None else int(self.cache.cross_attention_cache.get_seq_length())

    def mask(self, *, added: int) -> Tensor:
        """Return the attention mask [B, W + added] of the next pass, which appends `added` columns."""
        columns = torch.arange(self.width + added, device=self.starts.device)
        return (columns >= self.starts.unsqueeze(1)).long()

    def encoder_mask(self) -> Tensor:
        """Return the mask [B, S] of the encoded tokens."""
        assert self.encoded is not None
        columns = torch.arange(self.encoded_width, device=self.encoded.device)
        return (columns < self.encoded.unsqueeze(1)).long()

    def first_columns(self, row: int, columns: int) -> "KeyValues":
        """Return a copy of the first columns of a row of a model without an encoder."""
        begin, layers = int(self.starts[row]), []
        for layer in self.cache.layers:
            states = (layer.keys, layer.values)
            keys, values = (each[row : row + 1, :, begin : begin + columns].clone() for each in states)
            layers.append(GrowingLayer())
            layers[-1].hold(keys, values, columns)
        return KeyValues(Cache(layers=layers), torch.zeros_like(self.starts[:1]))

    def forget(self, rows: Iterable[int]) -> None:
        """Let finished rows begin anew at the next token, so that their positions do not grow past the model's."""
        if indices := [*rows]:
            self.starts[indices] = self.width


def empty_cache(*, has_encoder: bool) -> Cache:
    """Return a cache without columns, for the first pass of new rows; of an encoder-decoder, a pair of them."""
    caches = [Cache(layer_class_to_replicate=GrowingLayer) for _ in range(1 + has_encoder)]
    return EncoderDecoderCache(*caches) if has_encoder else caches[0]


def align_right(cache: Cache, begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Move each row to the right edge, and clear what lies before its first column.

    Args:
        cache: Keys and values [B, H, W, d] of self-attention.
        begins: First column of each row.
        ends: Column behind the last of each row.

    Returns:
        The first column of each row then.
    """
    width = int(cache.get_seq_length())
    starts = [begin + width - end for begin, end in zip(begins, ends, strict=True)]
    if not any(starts):
        return starts
    columns, shift = torch.arange(width), torch.tensor([width - end for end in ends]).unsqueeze(1)
    sources, outside = (columns - shift).clamp(min=0), columns < torch.tensor(starts).unsqueeze(1)
    for layer in cache.layers:
        index = sources.to(layer.device)[:, None, :, None].expand(layer.keys.shape)
        cleared = outside.to(layer.device)[:, None, :, None]
        keys, values = (states.gather(2, index).masked_fill(cleared, 0) for states in (layer.keys, layer.values))
        layer.hold(keys, values, width)
    return starts


def join(parts: Sequence[tuple[KeyValues, Sequence[int]]], order: Sequence[int]) -> KeyValues:
    """Return one cache of rows of several caches, as wide as the longest of them needs.

    Args:
        parts: Caches with the rows to take of each.
        order: Places of the taken rows in the new batch: row i of it is row `order[i]` of all taken ones.
    """
    parts = [(part, rows) for part, rows in parts if len(rows)]
    rows = [torch.tensor(part_rows, device=part.starts.device) for part, part_rows in parts]
    places = torch.empty(len(order), dtype=torch.long)  # of each taken row in the new batch
    places[torch.tensor(order)] = torch.arange(len(order))
    lengths = torch.cat([part.width - part.starts[taken] for (part, _), taken in zip(parts, rows, strict=True)])
    width = int(lengths.max())
    starts = _placed(width - lengths, places)
    if parts[0][0].encoded is None:
        return KeyValues(_joined([part.cache for part, _ in parts], rows, places, width, right=True), starts)
    self_attention = _joined([part.cache.self_attention_cache for part, _ in parts], rows, places, width, right=True)
    pairs = zip(parts, rows, strict=True)
    encoded = torch.cat([part.encoded[taken] for (part, _), taken in pairs if part.encoded is not None])
    crossed = [part.cache.cross_attention_cache for part, _ in parts]
    cross_attention = _joined(crossed, rows, places, int(encoded.max()), right=False)
    return KeyValues(EncoderDecoderCache(self_attention, cross_attention), starts, _placed(encoded, places))


def _placed(values: Tensor, places: Tensor) -> Tensor:
    """Return the values [B] at other places."""
    placed = torch.empty_like(values)
    placed[places.to(values.device)] = values
    return placed


def _joined(caches: Sequence[Cache], rows: Sequence[Tensor], places: Tensor, width: int, *, right: bool) -> Cache:
    """Copy rows of caches to one of `width` columns, aligned at the right edge or at the left one.

    Args:
        caches: The caches.
        rows: The rows to take of each.
        places: Place of each taken row in the new cache.
        width: Columns of the new cache.
        right: Whether rows end at the right edge, and the cache has spare columns behind it.
    """
    layers = []
    for number in range(len(caches[0].layers)):
        parts = [cache.layers[number] for cache in caches]
        layer = GrowingLayer()
        keys, values = (
            _joined_states([getattr(part, name) for part in parts], rows, places, width, right=right)
            for name in ("keys", "values")
        )
        layer.hold(keys, values, width)
        layers.append(layer)
    return Cache(layers=layers)


def _joined_states(
    parts: Sequence[Tensor], rows: Sequence[Tensor], places: Tensor, width: int, *, right: bool
) -> Tensor:
    _, heads, _, size = parts[0].shape
    memory = parts[0].new_zeros((len(places), heads, width + (MIN_SPARE_COLUMNS if right else 0), size))
    for states, taken, to in zip(
        parts, rows, torch.split(places.to(memory.device), [len(taken) for taken in rows]), strict=True
    ):
        common = min(states.shape[2], width)
        target, source = (
            slice(end - common if right else 0, end if right else common) for end in (width, states.shape[2])
        )
        memory[to, :, target] = states[taken.to(states.device)][:, :, source]
    return memory
