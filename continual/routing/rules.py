"""What every router is: a rule, made of the tasks' statistics alone, that scores each task for an input."""

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
    """A router before calibration. Features are wide and frozen [N, M]; tasks are numbered as in the totals."""

    def scores(self, features: Tensor) -> Tensor:
        """How well each input fits each task [N, K], the more the better; only differences within a row count."""
        ...

    def familiarity(self, features: Tensor) -> Tensor:
        """How much each input [N] is like those of any task, the more the better."""
        ...


RuleFactory = Callable[[AccumulatedMoments, HeldOutRows], RoutingRule]
"""The rule that follows from the sums over tasks, its settings chosen on held-out rows where there are any."""


def _checked(found: object) -> RuleFactory | str:
    return found if callable(found) else "a function of `Totals` and `HeldOut` that gives a `Rule`"


BUILT_IN_RULES, AUTO = ("ridge", "mahalanobis"), "auto"
ROUTERS = PluginRegistry[RuleFactory](
    {"ridge": ridge, "mahalanobis": mahalanobis}, "continual.routers", check=_checked, error=RoutingError
)
"""The routers by name, those of installed packages included."""


def rule_names(router: str) -> tuple[str, ...]:
    """The rules that a router is made of: of `auto` both of our own.

    Raises RoutingError for a name that nobody offers.
    """
    if router == AUTO:
        return BUILT_IN_RULES
    if router not in ROUTERS:
        near = difflib.get_close_matches(router, [AUTO, *ROUTERS], n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise RoutingError(f"router {router!r} is not known{hint}. Known: {', '.join([AUTO, *ROUTERS])}")
    return (router,)
