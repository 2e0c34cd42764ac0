"""One batch of rows of many tasks, each through its own delta."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from continual.deltas.change import PlacedEdit, RowRange
from continual.deltas.stack import DeltaStack


@dataclass(frozen=True)
class MixedBatch:
    """Which rows of a batch go through which deltas; rows that no share names go through none.

    shares: stacks with the slots of their rows, one per row, rows of one slot together; the rows of the first share
    come first, and so on · count: rows of the batch in all.
    """

    stacks: Sequence[tuple[DeltaStack, Sequence[int]]]
    count: int

    def changes(self) -> Iterator[PlacedEdit]:
        """All that is done to the batch."""
        begin = 0
        for stack, slots in self.stacks:
            yield from stack.changes(RowRange(begin, begin + len(slots), self.count), slots)
            begin += len(slots)
