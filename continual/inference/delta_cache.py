"""Deltas as they are needed: all of them in the registry, those used last in memory, fewer still on the device."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, MixedBatch, load_delta
from registry import Champion, Registry

DEVICE_SLOTS = 256  # deltas on the device
HOST_CACHE_BYTES = 1 << 30  # bytes of deltas in the host's memory


def cache_key(champion: Champion) -> str:
    """What a champion is called here: by its digest too, since a deleted task may come back with other values."""
    return f"{champion.delta} {champion.digest}"


def registry_loader(registry: Registry) -> Callable[[str], Delta]:
    """How to read what `resident` names from a registry. Raises BlobError."""
    return lambda name: load_delta(registry.blobs.get(name.rpartition(" ")[-1]))


class DeltaCache:
    """The deltas that a process answers with, each read by its name when it is first needed.

    slots: of the bank on the device · kept: bytes in the host's memory, where those used longest ago make room.
    On a device of its own memory, the host's copies are pinned, so that they are copied while something is computed.
    """

    def __init__(
        self,
        backbone: Backbone,
        read: Callable[[str], Delta],
        *,
        slots: int = DEVICE_SLOTS,
        kept: int = HOST_CACHE_BYTES,
    ) -> None:
        self._backbone, self._read, self._kept = backbone, read, kept
        self.slots = slots
        self._bank = Bank(backbone, slots=slots)
        self._known: OrderedDict[str, Delta] = OrderedDict()
        self._size = 0
        self._coming: dict[str, Future[Delta]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="deltas")

    def get(self, name: str) -> Delta:
        """A delta in the host's memory. Raises what reading it raises; it is tried anew when it is asked for again."""
        if coming := self._coming.pop(name, None):
            self._keep(name, coming.result())
        elif name not in self._known:
            self._keep(name, self._fetched(name))
        self._known.move_to_end(name)
        return self._known[name]

    def prefetch(self, names: Iterable[str]) -> None:
        """Begin to read what is not in memory yet; meanwhile, something else can be computed."""
        for name in names:
            if name not in self._known and name not in self._coming:
                self._coming[name] = self._reader.submit(self._fetched, name)

    def put_on_device(
        self, name: str, delta: Delta, *, beside: Collection[str], backbone: Backbone | None = None
    ) -> None:
        """Have a delta of this name on the device, beside these. Raises what `Bank.hold` raises."""
        if name not in self._bank:
            self._bank.put(name, delta, beside=beside, backbone=backbone)

    def mixed_batch(self, names: Sequence[str]) -> tuple[list[int], MixedBatch]:
        """As `Bank.mix`, of deltas that are held."""
        return self._bank.mixed_batch(names)

    def locations(self) -> dict[str, frozenset[str]]:
        """Which deltas lie on the device, and which in the host's memory."""
        return {"device": frozenset(self._bank), "memory": frozenset([*self._known])}

    def _fetched(self, name: str) -> Delta:
        delta = self._read(name)
        return delta.map(lambda tensor: tensor.pin_memory()) if self._backbone.device.type == "cuda" else delta

    def _keep(self, name: str, delta: Delta) -> None:
        self._known[name] = delta
        self._size += _size(delta)
        while self._size > self._kept and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._size -= _size(oldest)


def _size(delta: Delta) -> int:
    return sum(tensor.nbytes for tensor in delta.tensors().values())
