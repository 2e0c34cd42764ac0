"""What a process takes of a node, and how many of them the nodes of a cluster hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from continual.errors import EngineError

PROCESS_BYTES = 1 << 30  # bytes of a process that has PyTorch and transformers loaded, and no backbone yet
Resources = Mapping[str, float]


@dataclass(frozen=True)
class ResourceRequest:
    """What a process takes of its node; memory in bytes."""

    cpus: float
    gpus: float
    memory: int = 0

    def fits_on(self, node: Resources) -> int:
        """How many such processes a node of these resources holds.

        >>> Share(cpus=0.2, gpus=0, memory=1 << 30).times({"CPU": 1.0, "memory": 6 * 2.0**30})
        5
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return min(int(node.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount)

    def require_capacity(self, nodes: Sequence[Resources], count: int, *, what: str, advice: str) -> int:
        """How many of them these nodes hold, none of which lies on two. Raises EngineError where that is below `count`.

        what: they are called · advice: what to give instead.
        """
        if (room := sum(map(self.fits_on, nodes))) >= count:
            return room
        raise EngineError(
            f"the cluster has room for {room} {what}s with {_said(self.cpus, self.gpus, self.memory)} each, and "
            f"{count} {'is' if count == 1 else 'are'} needed; its nodes have "
            f"{'; '.join(_said(*_amounts(node)) for node in nodes) or 'nothing'}. {advice}"
        )


def _amounts(node: Resources) -> tuple[float, float, float]:
    return node.get("CPU", 0), node.get("GPU", 0), node.get("memory", 0)


def _said(cpus: float, gpus: float, memory: float) -> str:
    return f"{cpus:g} CPUs, {gpus:g} GPUs and {memory / (1 << 30):.1f} GiB"
