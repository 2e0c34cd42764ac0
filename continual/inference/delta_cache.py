"""A two-level LRU cache of the registry's deltas: some in host memory, fewer on the device."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from continual.backbones.backbone import Backbone
from continual.deltas import Bank, Delta, MixedBatch, load_delta
from registry import Champion, Registry
from tasks.errors import ContinualError

DEVICE_SLOTS = 256  # deltas on the device
HOST_CACHE_BYTES = 1 << 30  # bytes of deltas in the host's memory

log = logging.getLogger(__name__)


def cache_key(champion: Champion) -> str:
    """Return a champion's key: name and digest, since a deleted task may be learned again differently."""
    return f"{champion.delta} {champion.digest}"


def registry_loader(registry: Registry) -> Callable[[str], Delta]:
    """Return a function that loads a delta from the registry by its `cache_key`; it may raise BlobError."""
    return lambda key: load_delta(registry.blobs.get(key.rpartition(" ")[-1]))


class DeltaCache:
    """The deltas that a process answers with, each loaded when it is first needed.

    For a device with memory of its own the host's copies are pinned, so that copying overlaps with computation.

    Args:
        backbone: The backbone that the deltas are attached to.
        load: Loads a delta by its key.
        slots: Number of deltas on the device.
        max_bytes: Bytes of deltas in host memory; the least recently used are evicted, the last one excepted.
    """

    def __init__(
        self,
        backbone: Backbone,
        load: Callable[[str], Delta],
        *,
        slots: int = DEVICE_SLOTS,
        max_bytes: int = HOST_CACHE_BYTES,
    ) -> None:
        self._backbone, self._load, self._max_bytes = backbone, load, max_bytes
        self.slots = slots
        self._bank = Bank(backbone, slots=slots)
        self._deltas: OrderedDict[str, Delta] = OrderedDict()
        self._bytes = 0
        self._pending: dict[str, Future[Delta]] = {}
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="deltas")

    def get(self, name: str) -> Delta:
        """Return a delta in host memory; errors of loading are raised, and the next call tries again."""
        if future := self._pending.pop(name, None):
            self._insert(name, future.result())
        elif name not in self._deltas:
            self._insert(name, self._load_pinned(name))
        self._deltas.move_to_end(name)
        return self._deltas[name]

    def prefetch(self, names: Iterable[str]) -> None:
        """Start to load the deltas that are not in host memory, in a background thread."""
        for name in names:
            if name not in self._deltas and name not in self._pending:
                self._pending[name] = self._executor.submit(self._load_pinned, name)

    def put_on_device(
        self, name: str, delta: Delta, *, beside: Collection[str], backbone: Backbone | None = None
    ) -> None:
        """Copy a delta to the device unless it is there; raise what `Bank.put` raises.

        Args:
            name: Key of the delta.
            delta: The delta.
            beside: Keys that must stay on the device.
            backbone: The backbone as this delta sees it, where that differs from the cache's.
        """
        if name not in self._bank:
            self._bank.put(name, delta, beside=beside, backbone=backbone)

    def mixed_batch(self, names: Sequence[str | None]) -> tuple[list[int], MixedBatch]:
        """Return `Bank.mixed_batch` for rows whose deltas, one key per row, are on the device."""
        return self._bank.mixed_batch(names)

    def build_batch(self, names: Sequence[str]) -> tuple[list[int], Delta | MixedBatch | None]:
        """Return the order of rows whose answers are written, and what to attach; an `engine.BatchBuilder`.

        A row whose delta cannot be loaded or put on the device is left out.

        Args:
            names: Key of each row's delta; empty for a row without one.
        """
        needed = dict.fromkeys(name for name in names if name)
        whole, failed = replace(self._backbone, generates=True), set[str]()
        for name in needed:
            try:
                delta = self.get(name)
                if name not in self._bank and not Bank.can_batch(whole, delta):
                    return [*range(len(names))], delta.to(self._backbone.device)  # such rows come by themselves
                self.put_on_device(name, delta, beside=needed, backbone=whole)
            except ContinualError as error:
                log.error("delta %s cannot be used: %s", name, error)
                failed.add(name)
        rows = [i for i, name in enumerate(names) if name not in failed]
        order, mixture = self.mixed_batch([names[i] or None for i in rows])
        return [rows[i] for i in order], mixture

    def locations(self) -> dict[str, frozenset[str]]:
        """Return the keys of the deltas on the `device` and in host `memory`."""
        return {"device": frozenset(self._bank), "memory": frozenset([*self._deltas])}

    def _load_pinned(self, name: str) -> Delta:
        delta = self._load(name)
        return delta.map(lambda tensor: tensor.pin_memory()) if self._backbone.device.type == "cuda" else delta

    def _insert(self, name: str, delta: Delta) -> None:
        self._deltas[name] = delta
        self._bytes += _num_bytes(delta)
        while self._bytes > self._max_bytes and len(self._deltas) > 1:
            _, oldest = self._deltas.popitem(last=False)
            self._bytes -= _num_bytes(oldest)


def _num_bytes(delta: Delta) -> int:
    return sum(tensor.nbytes for tensor in delta.tensors().values())
