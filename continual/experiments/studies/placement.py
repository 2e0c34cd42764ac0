"""Study: sequential against parallel adapters, at attention against at the feed-forward, of equal size.

    sequential   y ← y + A(y)
    parallel     y ← y + A(r)

A block, attention or feed-forward, has output y, and r is the residual stream in front of it.
He et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366), sections 4.2
and 4.3: parallel is better than sequential, and at the feed-forward better than at attention.
"""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, final

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.experiments.studies.design_comparison import (
    DesignComparison,
    method_near,
    parallel_adapter,
    parameter_count,
    sequential_adapter,
)
from tasks import Method

BLOCKS = {"attention": "attn", "feed-forward": "ffn"}
FORMS = {"sequential": sequential_adapter, "parallel": parallel_adapter}


@final
class Placement(DesignComparison):
    """Compares adapters in sequence with a block and beside it, at attention and at the feed-forward.

    Norms are frozen in all. Where a decoder has two attentions in a layer, adapters at attention are smaller, so that
    all have as many parameters.

    Attributes:
        size: The size of the bottleneck at the feed-forward.
    """

    shows: ClassVar[str] = "sequential or parallel adapters, at attention or feed-forward, of equal size"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366, sections 4.2 and 4.3"
    axes: ClassVar[tuple[str, str]] = ("block", "form")

    size: int = Field(default=64, ge=1, le=4096)

    def designs(self, backbone: Backbone) -> Mapping[str, Mapping[str, Method]]:
        """See `DesignComparison.designs`."""
        parameters = parameter_count(backbone, sequential_adapter("ffn", self.size))
        return {
            name: {form: method_near(backbone, partial(adapter, block), parameters) for form, adapter in FORMS.items()}
            for name, block in BLOCKS.items()
        }
