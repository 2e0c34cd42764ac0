"""What every router is: a rule, made of the tasks' statistics alone, that scores each task for an input."""

from collections.abc import Callable, Iterator
from typing import Protocol

from torch import Tensor

from continual.errors import RoutingError
from continual.routing.mahalanobis import mahalanobis
from continual.routing.ridge import ridge
from continual.routing.totals import Totals
from tasks.plugins import Open


class Rule(Protocol):
    """A router before calibration. Features are wide and frozen [N, M]; tasks are numbered as in the totals."""

    def scores(self, features: Tensor) -> Tensor:
        """How well each input fits each task [N, K], the more the better; only differences within a row count."""
        ...

    def known(self, features: Tensor) -> Tensor:
        """How much each input [N] is like those of any task, the more the better."""
        ...


Fit = Callable[[Totals], Iterator[Rule]]
"""From the sums over tasks one rule or more, which differ in a setting; the best on held-out rows is taken."""


def _checked(found: object) -> Fit | str:
    return found if callable(found) else "a function of `Totals` that yields rules, see `continual.routing.router`"


ROUTERS = Open[Fit](
    {"ridge": ridge, "mahalanobis": mahalanobis}, "continual.routers", check=_checked, error=RoutingError
)
"""The routers by name, those of installed packages included."""
