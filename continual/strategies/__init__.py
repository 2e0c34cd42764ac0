"""Strategies of continual learning that isolated deltas are compared with: for each, one short file."""

from continual.strategies.compare import compare, recipe_of
from continual.strategies.document import comparison, finished_runs
from continual.strategies.offered import DEFAULT, ISOLATED, STRATEGIES, offered, require_known
from continual.strategies.strategy import Strategy

__all__ = [
    "DEFAULT",
    "ISOLATED",
    "STRATEGIES",
    "Strategy",
    "compare",
    "comparison",
    "finished_runs",
    "offered",
    "recipe_of",
    "require_known",
]
