"""Routing: which task an input belongs to when nobody says."""

from continual.routing.calibrated import Router, build_router, calibrate
from continual.routing.decision import Decision, Opinion, decide
from continual.routing.evidence import Evidence, evidence
from continual.routing.held_out import held_out
from continual.routing.router import AUTO, ROUTERS, rule_names
from continual.routing.statistics import Statistics, spread, statistics

__all__ = [
    "AUTO",
    "ROUTERS",
    "Decision",
    "Evidence",
    "Opinion",
    "Router",
    "Statistics",
    "build_router",
    "calibrate",
    "decide",
    "evidence",
    "held_out",
    "rule_names",
    "spread",
    "statistics",
]
