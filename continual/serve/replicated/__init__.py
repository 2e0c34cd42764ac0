"""Serving by several replicas, which Ray Serve places, starts again and chooses among. Needs the extra `ray`."""

from continual.serve.replicated.deployment import ReplicaConfig, deploy_replicas

__all__ = ["ReplicaConfig", "deploy_replicas"]
