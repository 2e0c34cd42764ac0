"""Serving by several replicas, which Ray Serve places, restarts and balances. Needs the extra `ray`."""

from continual.serve.replicated.deployment import ReplicaConfig, deploy_replicas

__all__ = ["ReplicaConfig", "deploy_replicas"]
