"""The interface of routing rules, which score every task for an input, and the catalogue of rules."""

import difflib
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from continual.errors import RoutingError
from continual.routing.held_out import HeldOutRows
from continual.routing.mahalanobis import mahalanobis
from continual.routing.ridge import ridge
from continual.routing.totals import AccumulatedMoments
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


RuleFactory = Callable[[AccumulatedMoments, HeldOutRows], RoutingRule]
"""Makes a rule from the sums over tasks, its settings chosen on held-out rows where there are any."""


def _checked(found: object) -> RuleFactory | str:
    return found if callable(found) else "a function of `Totals` and `HeldOut` that gives a `Rule`"


BUILT_IN_RULES, AUTO = ("ridge", "mahalanobis"), "auto"
ROUTERS = PluginRegistry[RuleFactory](
    {"ridge": ridge, "mahalanobis": mahalanobis}, "continual.routers", check=_checked, error=RoutingError
)
"""The routers by name, those of installed packages included."""


def rule_names(router: str) -> tuple[str, ...]:
    """Return the names of the rules that a router combines: all built-in ones for `auto`, else the one named.

    Raises:
        RoutingError: No rule has that name.
    """
    if router == AUTO:
        return BUILT_IN_RULES
    if router not in ROUTERS:
        near = difflib.get_close_matches(router, [AUTO, *ROUTERS], n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise RoutingError(f"router {router!r} is not known{hint}. Known: {', '.join([AUTO, *ROUTERS])}")
    return (router,)
