"""Routing: which task an input belongs to when nobody says."""

from continual.routing.mahalanobis import Routed, Router, build_router

__all__ = ["Routed", "Router", "build_router"]
