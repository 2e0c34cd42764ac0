"""Study: one head against every head of attention, and the feed-forward, at small and at large budgets.

Prefixes and multi-head adapters change each head of attention by itself, a parallel adapter all of them together. He
et al. (2022), "Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv:2110.04366), section 4.4: heads
of attention are the better place for very few parameters, the feed-forward for more.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, ClassVar, final

from pydantic import Field

from continual.backbones.backbone import Backbone
from continual.experiments.studies.aggregation import method_of_name
from continual.experiments.studies.design_comparison import DesignComparison, method_near, parallel_adapter
from tasks import Method

BUDGETS = (0.001, 0.01)


@final
class Heads(DesignComparison):
    """Compares changes of one head and of many heads of attention, and of the feed-forward, by budget.

    The size of each method is that of the number of parameters nearest to the budget.

    Attributes:
        budgets: Shares of the backbone's parameters.
    """

    shows: ClassVar[str] = "one head or many heads of attention, or feed-forward, by budget"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366, section 4.4"
    axes: ClassVar[tuple[str, str]] = ("budget", "change")

    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(default=BUDGETS, min_length=1)

    def designs(self, backbone: Backbone) -> Mapping[str, Mapping[str, Method]]:
        """See `DesignComparison.designs`."""
        of_size: Mapping[str, Callable[[int], Method]] = {
            "attention, one head": partial(parallel_adapter, "attn"),
            "attention, prefix": lambda size: method_of_name("prefix", length=size),
            "attention, multi-head adapter": lambda size: method_of_name("multi_head_adapter", size=size),
            "feed-forward": partial(parallel_adapter, "ffn"),
        }
        return {
            f"{100 * budget:g} %": {
                name: method_near(backbone, sized, budget * backbone.parameter_count) for name, sized in of_size.items()
            }
            for budget in self.budgets
        }
