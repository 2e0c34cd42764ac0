"""A plugin of vLLM: the champions of a registry by the names of their tasks, converted when they are first asked for.

vLLM calls `register` at its start (entry point group `vllm.general_plugins`), and asks the resolver for every name that
it has not loaded yet. Nothing is registered unless CONTINUAL_HOME or CONTINUAL_REGISTRY_URL says where the registry is.
"""

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any, NamedTuple

from continual.settings import DEFAULT_HOME, Locations, resolve_locations

log = logging.getLogger(__name__)

PLUGIN = "continual"  # its name among vLLM's resolvers
MAX_INTEGER_ID = 2**31 - 1
_LOCATIONS = ("CONTINUAL_HOME", "CONTINUAL_REGISTRY_URL")


class ResolvedAdapter(NamedTuple):
    """An adapter in the cache.

    Attributes:
        delta: Name of the delta.
        folder: Its folder, another one for every delta and rank.
        integer_id: A number of the folder's name, from 1.
    """

    delta: str
    folder: Path
    integer_id: int


@dataclass(frozen=True)
class ChampionResolver:
    """Finds adapters by the name of a task, whose champion is meant, or of a delta such as `sst2@1`.

    Attributes:
        locations: Where the registry is.
        cache: Folder of the converted adapters.
        rank: Largest rank, as in `continual.exchange.low_rank.to_low_rank`.
    """

    locations: Locations
    cache: Path
    rank: int | None = None
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any | None:
        """Return vLLM's `LoRARequest` of a name; None where there is no such adapter for the model.

        Args:
            base_model_name: The model that is served, a hub id or a folder.
            lora_name: The name that a request asks for.
        """
        from vllm.lora.request import LoRARequest

        adapter = await asyncio.to_thread(self.find, base_model_name, lora_name)
        if adapter is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=adapter.integer_id, lora_path=str(adapter.folder))

    def find(self, base: str, name: str) -> ResolvedAdapter | None:
        """Return the adapter of a task or a delta in the cache, and convert it first where it is not there.

        Args:
            base: The model, a hub id or a folder.
            name: The task or the delta.

        Returns:
            The adapter; None, and a warning in the log but for unknown names, where it cannot be had.
        """
        from tasks.errors import ContinualError

        try:
            return self._find(base, name)
        except ContinualError as error:
            log.warning("%r cannot be served: %s", name, error)
            return None

    def _find(self, base: str, name: str) -> ResolvedAdapter | None:
        from registry import Registry
        from registry.errors import NotFound

        registry = Registry.open_existing(self.locations.registry, self.locations.blobs)
        if registry is None:
            log.warning("there is no registry at %s", self.locations.home)
            return None
        with registry:
            backbones = {
                record.fingerprint: record.name for record in registry.backbones() if is_model(record.name, base)
            }
            champions = {c.task: c.delta for backbone in backbones for c in registry.champions(backbone)}
            try:
                stored = registry.delta(champions.get(name, name))
            except NotFound:
                return None
            if stored.backbone not in backbones:
                return None
            folder = self.cache / f"{stored.name}-{stored.values[:16]}{f'-rank{self.rank}' if self.rank else ''}"
            with self._lock:
                if not folder.exists():
                    self._convert(registry, backbones[stored.backbone], stored.name, folder)
        digest = hashlib.sha256(folder.name.encode()).digest()
        return ResolvedAdapter(stored.name, folder, 1 + int.from_bytes(digest[:8]) % MAX_INTEGER_ID)

    def _convert(self, registry: Any, backbone: str, delta: str, folder: Path) -> None:
        """Export a delta beside its folder, and move it there whole: several processes may do so at once."""
        from continual.backbones.backbone import load_backbone
        from continual.exchange.exporting import export_delta

        self.cache.mkdir(parents=True, exist_ok=True)
        draft = Path(mkdtemp(prefix=".draft-", dir=self.cache))
        try:
            loaded = load_backbone(backbone, device="cpu", dtype="float32")
            export_delta(
                loaded, registry, delta, folder=draft / "adapter", file_format="vllm", rank=self.rank, measured=False
            )
            try:
                (draft / "adapter").rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(draft)


def is_model(backbone: str, base: str) -> bool:
    """Return whether a registered backbone's name and a model's name, hub id or folder are the same model."""
    from continual.backbones.hub import hub_name, resolve_source
    from continual.backbones.quantization import plain_name
    from continual.errors import BackboneError

    try:
        source, name = resolve_source(plain_name(backbone)[0]), hub_name(backbone)
    except BackboneError:  # a packaged one whose package is not installed
        return False
    if Path(source).is_dir() and Path(base).is_dir():
        return Path(source).samefile(base)
    return base in (name, source)


def resolver_from_environment(environment: Mapping[str, str]) -> ChampionResolver | None:
    """Return the resolver that environment variables describe; None where they name no registry.

    Args:
        environment: CONTINUAL_HOME and the variables of `resolve_locations`; CONTINUAL_LORA_CACHE, the folder of the
            adapters, by default `vllm-adapters` in the home; CONTINUAL_LORA_RANK, the largest rank.
    """
    if not any(environment.get(name) for name in _LOCATIONS):
        return None
    locations = resolve_locations(environment.get("CONTINUAL_HOME") or DEFAULT_HOME, environment)
    cache = Path(environment.get("CONTINUAL_LORA_CACHE") or locations.home / "vllm-adapters").absolute()
    rank = environment.get("CONTINUAL_LORA_RANK")
    return ChampionResolver(locations, cache, int(rank) if rank else None)


def register() -> None:
    """Register the resolver with vLLM, where the environment names a registry."""
    resolver = resolver_from_environment(os.environ)
    if resolver is None:
        return
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    LoRAResolver.register(ChampionResolver)  # an abstract class, so that vLLM need not be there to define ours
    LoRAResolverRegistry.register_resolver(PLUGIN, resolver)
