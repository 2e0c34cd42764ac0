"""Sums and held-out rows that a router is built from, kept so that a change of tasks costs what changed.

Shapes: C classes of a task, M width of features, L leading features, H held-out rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from continual.routing.held_out import TaskHeldOut, rows_per_task, task_held_out
from continual.routing.moments import AccumulatedMoments, ClassMeans
from continual.routing.statistics import RoutingStatistics
from continual.serialization import deserialize, serialize
from registry.errors import BlobError


@dataclass
class RouterSums:
    """What a router is built from.

    Attributes:
        totals: Sums over the tasks.
        held_out: Held-out rows in random features by task.
        sources: Digest of the routing statistics of each task.
    """

    totals: AccumulatedMoments = field(default_factory=AccumulatedMoments)
    held_out: dict[str, TaskHeldOut] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def can_become(self, sources: Mapping[str, str]) -> bool:
        """Whether the sums of these sources come from fewer reads by difference than by summing anew."""
        unchanged = self.sources.items() & sources.items()
        has_rows = rows_per_task(len(sources)) <= rows_per_task(len(self.sources))  # else more would be needed
        return has_rows and len(self.sources) - len(unchanged) < len(unchanged)

    def add(self, name: str, source: str, part: RoutingStatistics, *, num_tasks: int) -> None:
        """Add a task, one of `num_tasks` in the end."""
        self.totals.add(name, part)
        self.held_out[name] = task_held_out(part, features="random_features", count=rows_per_task(num_tasks))
        self.sources[name] = source

    def remove(self, name: str, part: RoutingStatistics) -> None:
        """Remove a task; `part` must be what it was added with."""
        self.totals.remove(name, part)
        del self.held_out[name], self.sources[name]

    def to_bytes(self) -> bytes:
        """Serialize the sums."""
        names, totals = sorted(self.sources), self.totals
        tensors = {"moment": _triangle(totals.moment), "within": _triangle(totals.within), "total": totals.total}
        tensors["means"] = torch.cat([totals.tasks[name].means for name in names])
        tensors["shares"] = torch.cat([totals.tasks[name].shares for name in names])
        tensors["counts"] = torch.cat([totals.tasks[name].counts for name in names])
        tensors["rows"] = torch.cat([self.held_out[name].rows for name in names])
        tensors["fit"] = torch.cat([self.held_out[name].fit for name in names])
        sizes = [[len(totals.tasks[name].means), len(self.held_out[name].rows)] for name in names]
        return serialize(tensors, {"sources": self.sources, "sizes": sizes})

    @classmethod
    def from_bytes(cls, data: bytes) -> "RouterSums":
        """Restore the sums that `to_bytes` serialized.

        Raises:
            BlobError: The bytes are something else.
        """
        tensors, values = deserialize(data, what="router's sums")
        try:
            names = sorted(values["sources"])
            class_sizes, row_sizes = ([int(pair[place]) for pair in values["sizes"]] for place in (0, 1))
            classes = [torch.split(tensors[key], class_sizes) for key in ("means", "shares", "counts")]
            rows, fit = (torch.split(tensors[key], row_sizes) for key in ("rows", "fit"))
            moment, within = (_symmetric(tensors[key]) for key in ("moment", "within"))
            tasks = {name: ClassMeans(*parts) for name, *parts in zip(names, *classes, strict=True)}
            totals = AccumulatedMoments(moment, within, tensors["total"], tasks)
            held_out = {name: TaskHeldOut(*parts) for name, *parts in zip(names, rows, fit, strict=True)}
            return cls(totals, held_out, dict(values["sources"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BlobError(f"these {len(data)} bytes are no sums of a router: {error!r}") from error


def _triangle(matrix: Tensor) -> Tensor:
    """Return the lower triangle of a symmetric matrix [M, M] as M (M + 1) / 2 values."""
    return torch.cat([row[: i + 1] for i, row in enumerate(matrix)])


def _symmetric(triangle: Tensor) -> Tensor:
    size = int((2 * len(triangle) + 0.25) ** 0.5)
    matrix = torch.zeros(size, size, dtype=triangle.dtype)
    for i, row in enumerate(torch.split(triangle, [*range(1, size + 1)])):
        matrix[i, : i + 1] = row
        matrix[: i + 1, i] = row
    return matrix
