"""Settings of a server, in a form that other processes can receive and open."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from continual.backbones.backbone import load_backbone
from continual.inference.delta_cache import DEVICE_SLOTS
from continual.serve.application import POLL_SECONDS
from continual.serve.core.admission import Limits
from continual.serve.core.champions import ChampionServer
from continual.settings import FALSE_ABSTENTION_RATE
from registry import Registry


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings from which a process, here or on another node, opens a server.

    Attributes:
        backbone: Name, hub id or folder, as for `load_backbone`.
        device: As for `load_backbone`.
        dtype: As for `load_backbone`.
        bits: As for `load_backbone`.
        registry: The database's URL, as for `Registry.open`; it may hold a password.
        blobs: The blobs' URL, as for `Registry.open`; it may hold a password.
        router: As for `Predictor`.
        false_abstentions: As for `Predictor`.
        slots: As for `Predictor`.
        local: As for `create_app`.
        limits: As for `create_app`.
        poll: As for `create_app`, in seconds.
    """

    backbone: str
    device: str = "auto"
    dtype: str = "auto"
    bits: int | None = None
    registry: str = field(repr=False)  # URLs may hold passwords
    blobs: str = field(repr=False)
    router: str = "auto"
    false_abstentions: float = FALSE_ABSTENTION_RATE
    slots: int = DEVICE_SLOTS
    local: bool = True
    limits: Limits = field(default_factory=Limits)
    poll: float = POLL_SECONDS

    @contextmanager
    def open_champions(self) -> Iterator[ChampionServer]:
        """Load the backbone and open the registry; yield the server of its champions until the block ends."""
        backbone = load_backbone(self.backbone, device=self.device, dtype=self.dtype, bits=self.bits)
        with Registry.open(self.registry, self.blobs) as registry:
            yield ChampionServer(
                backbone,
                registry,
                router=self.router,
                false_abstentions=self.false_abstentions,
                slots=self.slots,
            )
