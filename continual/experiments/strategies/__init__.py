"""Strategies of continual learning that isolated deltas are compared with: for each, one short file."""

from continual.experiments.strategies.catalog import DEFAULT, STRATEGIES, build_strategies, check_strategy_names
from continual.experiments.strategies.compare import compare_strategies, progress_name
from continual.experiments.strategies.strategy import Strategy

__all__ = [
    "DEFAULT",
    "STRATEGIES",
    "Strategy",
    "build_strategies",
    "check_strategy_names",
    "compare_strategies",
    "progress_name",
]
