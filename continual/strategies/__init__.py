"""Strategies of continual learning that isolated deltas are compared with: for each, one short file."""

from continual.strategies.compare import compare, watched
from continual.strategies.document import (
    COSTS_EXPLAINED,
    EXPLAINED,
    MEASURED,
    comparison,
    ends,
    finished_runs,
    measured,
    seen_so_far,
)
from continual.strategies.offered import DEFAULT, ISOLATED, STRATEGIES, offered, require_known
from continual.strategies.strategy import Strategy

__all__ = [
    "COSTS_EXPLAINED",
    "DEFAULT",
    "EXPLAINED",
    "ISOLATED",
    "MEASURED",
    "STRATEGIES",
    "Strategy",
    "compare",
    "comparison",
    "ends",
    "finished_runs",
    "measured",
    "offered",
    "require_known",
    "seen_so_far",
    "watched",
]
