"""What a server is made of, in words that another process understands too."""

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
    """backbone, device, dtype, bits: as of `load_backbone` · registry, blobs: as of `Registry.open` · router,
    false_abstentions, slots: as of `Predictor` · local, limits, poll: as of `application`.
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
        """The champions on the backbone, which is loaded; the registry is open until the block ends."""
        backbone = load_backbone(self.backbone, device=self.device, dtype=self.dtype, bits=self.bits)
        with Registry.open(self.registry, self.blobs) as registry:
            yield ChampionServer(
                backbone,
                registry,
                router=self.router,
                false_abstentions=self.false_abstentions,
                slots=self.slots,
            )
