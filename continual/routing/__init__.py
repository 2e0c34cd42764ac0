"""Routing: choose the task that an input belongs to where none is named."""

from continual.routing.decision import Decision, Opinion, choose_tasks
from continual.routing.evidence import FitStatistics, fit_statistics
from continual.routing.held_out import HeldOutRows, collect_held_out
from continual.routing.moments import AccumulatedMoments, max_over_classes
from continual.routing.router import Router, build_router, calibrate
from continual.routing.rules import AUTO, ROUTERS, RoutingRule, rule_names
from continual.routing.statistics import RoutingStatistics, compute_statistics, evenly_spaced

__all__ = [
    "AUTO",
    "ROUTERS",
    "AccumulatedMoments",
    "Decision",
    "FitStatistics",
    "HeldOutRows",
    "Opinion",
    "Router",
    "RoutingRule",
    "RoutingStatistics",
    "build_router",
    "calibrate",
    "choose_tasks",
    "collect_held_out",
    "compute_statistics",
    "evenly_spaced",
    "fit_statistics",
    "max_over_classes",
    "rule_names",
]
