"""What a worker takes of a node, and how many of them the nodes of a cluster hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from continual.errors import EngineError

PROCESS = 1 << 30  # bytes of a process that has PyTorch and transformers loaded, and no backbone yet
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Share:
    """What a worker takes of its node; memory in bytes."""

    cpus: int
    gpus: float
    memory: int

    def times(self, node: Resources) -> int:
        """How many workers a node of these resources holds.

        >>> Share(cpus=2, gpus=0, memory=1 << 30).times({"CPU": 8.0, "memory": 3 * 2.0**30})
        3
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.get(name, 0) // amount) for name, amount in wanted.items() if amount)

    def require_room(self, nodes: Sequence[Resources]) -> int:
        """How many workers these nodes hold. Raises EngineError where none of them holds any."""
        if count := sum(map(self.times, nodes)):
            return count
        raise EngineError(
            f"no node of the cluster holds a worker of {_said(self.cpus, self.gpus, self.memory)}; "
            f"the nodes have {'; '.join(_said(*_amounts(node)) for node in nodes) or 'nothing'}. "
            "Give smaller --worker-cpus, --worker-gpus or --worker-memory, a smaller batch_size or max_length, or "
            "larger nodes"
        )


def _amounts(node: Resources) -> tuple[float, float, float]:
    return node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)


def _said(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / (1 << 30):.1f} GiB"
