"""Serving by several replicas, which Ray Serve places, starts again and chooses among. Needs the extra `ray`."""

from continual.serve.replicated.cluster import Replicas, replicated

__all__ = ["Replicas", "replicated"]
