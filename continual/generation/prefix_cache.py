"""Keys and values of what the prompts of a delta begin with, such as a template or a system's message.

Of each delta the last prompt is kept, cut to what the next one has in common with it, so that after two prompts their
common beginning is left.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from continual.generation.key_values import KeyValues
from continual.generation.sampling import Ids

MIN_SHARED_TOKENS = 8  # a shorter beginning is read again
MAX_TOKENS = 1 << 13  # of all prompts that are kept


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt.

    Attributes:
        ids: Its tokens.
        key_values: Their cache, of one row.
        soft_tokens: How many vectors the delta puts before them, which are in the cache too.
    """

    ids: Ids
    key_values: KeyValues
    soft_tokens: int

    def cut(self, length: int) -> "Prefix":
        """Return the first tokens of it."""
        columns = self.soft_tokens + length
        return Prefix(self.ids[:length], self.key_values.first_columns(0, columns), self.soft_tokens)


class PrefixCache:
    """The last prompt of each delta; the least recently used are dropped."""

    def __init__(self) -> None:
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()

    def shared_length(self, delta: str, ids: Ids) -> int:
        """Return how many tokens of a prompt need not be read; never all of them."""
        if delta not in self._prefixes:
            return 0
        length = common_length(self._prefixes[delta].ids, ids[:-1])
        return length if length >= MIN_SHARED_TOKENS else 0

    def take(self, delta: str, length: int) -> KeyValues:
        """Return the cache of the first tokens of a delta's prompts."""
        self._prefixes.move_to_end(delta)
        return self._prefixes[delta].cut(length).key_values

    def update(self, delta: str, ids: Ids, key_values: KeyValues, row: int, *, soft_tokens: int) -> None:
        """Keep what a prompt has in common with the one before it, or all of it where that is little.

        Args:
            delta: Name of the delta.
            ids: Tokens of the prompt.
            key_values: The cache of a batch that has read it.
            row: Its row in the batch.
            soft_tokens: How many vectors the delta puts before the tokens.
        """
        previous = self._prefixes.get(delta)
        length = common_length(previous.ids, ids) if previous else 0
        if previous is not None and length >= MIN_SHARED_TOKENS:
            self._prefixes[delta] = previous.cut(length) if length < len(previous.ids) else previous
        else:
            columns = key_values.first_columns(row, soft_tokens + len(ids))
            self._prefixes[delta] = Prefix(ids, columns, soft_tokens)
        self._prefixes.move_to_end(delta)
        while sum(len(prefix.ids) for prefix in self._prefixes.values()) > MAX_TOKENS and len(self._prefixes) > 1:
            self._prefixes.popitem(last=False)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common beginning of two sequences.

    >>> common_length([1, 2, 3], [1, 2, 4])
    2
    """
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
