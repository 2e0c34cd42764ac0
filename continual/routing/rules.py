"""The interface of routing rules, which score every task for an input, and the catalogue of rules."""

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from continual.errors import RoutingError
from continual.routing.held_out import HeldOutRows
from continual.routing.mahalanobis import mahalanobis
from continual.routing.moments import AccumulatedMoments
from continual.routing.ridge import ridge
from tasks.plugins import PluginRegistry


class RoutingRule(Protocol):
    """A router before calibration; it is made of the tasks' statistics alone.

    Shapes: N inputs, M width of the frozen features, K tasks, numbered as in the totals.
    """

    def scores(self, features: Tensor) -> Tensor:
        """Score each task for each input [N, K] from features [N, M]; only differences within a row count."""
        ...

    def familiarity(self, features: Tensor) -> Tensor:
        """Compute how much each input resembles rows of any task [N] from features [N, M]; higher is closer."""
        ...


@runtime_checkable
class ClassRule(RoutingRule, Protocol):
    """A rule by the best class of a task, which can also be evaluated for some classes only.

    Shapes: N inputs, M width of the frozen features, C classes of all tasks, Q candidate classes.
    """

    def class_scores(self, features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Score each class [N, C], or the classes [N, Q] given for each input, from features [N, M]."""
        ...

    def familiarity_at(self, features: Tensor, nearest: Tensor) -> Tensor:
        """Compute the familiarity [N] of features [N, M] from the highest score of a class [N]."""
        ...


RuleFactory = Callable[[AccumulatedMoments, HeldOutRows], RoutingRule]
"""Makes a rule from the sums over tasks, its settings chosen on held-out rows where there are any."""


def _check(plugin: object) -> RuleFactory | str:
    accepted = "a function of `AccumulatedMoments` and `HeldOutRows` that returns a `RoutingRule`"
    return cast(RuleFactory, plugin) if callable(plugin) else accepted


AUTO = "auto"
ROUTERS = PluginRegistry[RuleFactory](
    "router",
    "continual.routers",
    check=_check,
    error=RoutingError,
    built_in={"ridge": ridge, "mahalanobis": mahalanobis},
)
"""The routing rules by name; another package adds one by an entry point of the group `continual.routers`."""


def rule_names(router: str) -> tuple[str, ...]:
    """Return the names of the rules that a router combines: all built-in ones for `auto`, else its own.

    Raises:
        RoutingError: No rule has that name.
    """
    if router == AUTO:
        return tuple(ROUTERS.built_in)
    ROUTERS.lookup(router, also_known=[AUTO])
    return (router,)
