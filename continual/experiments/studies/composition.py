"""Study: a scaled change against plain addition, for parallel adapters and LoRA.

    y ← y + s · Δ

He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366), section 4.5:
s is a hyperparameter, and a scale above 1 is better than plain addition.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, final

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.experiments.studies.aggregation import method_of_name
from continual.experiments.studies.design_comparison import DesignComparison, method_near, parameter_count
from tasks import Method

SCALES = (1.0, 2.0, 4.0)
SITES = ("ffn.in", "ffn.out")  # of LoRA: what the parallel adapter is beside


@final
class Composition(DesignComparison):
    """Compares scales of a parallel adapter and of LoRA at the feed-forward; both start as the backbone.

    LoRA's rank is that of about as many parameters as the adapter.

    Attributes:
        size: The size of the adapter's bottleneck.
        scales: The scales s; of LoRA alpha / rank.
    """

    shows: ClassVar[str] = "scaled against plain addition, for parallel adapters and LoRA"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366, section 4.5"
    axes: ClassVar[tuple[str, str]] = ("method", "scale")

    size: int = Field(default=64, ge=1, le=4096)
    scales: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(default=SCALES, min_length=1)

    def designs(self, backbone: Backbone) -> Mapping[str, Mapping[str, Method]]:
        """See `DesignComparison.designs`."""
        parameters = parameter_count(backbone, self._parallel(1.0))
        rank = int(method_near(backbone, _lora, parameters).settings["rank"])
        return {
            "parallel adapter": {f"{scale:g}": self._parallel(scale) for scale in self.scales},
            "LoRA": {f"{scale:g}": _lora(rank, scale) for scale in self.scales},
        }

    def _parallel(self, scale: float) -> Method:
        return method_of_name("parallel_adapter", size=self.size, scale=scale)


def _lora(rank: int, scale: float = 1.0) -> Method:
    return method_of_name("lora", rank=rank, alpha=scale * rank, sites=list(SITES))
