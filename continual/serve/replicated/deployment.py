"""Deploying replicas on a Ray cluster: a local one that ends with them, or an existing one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.schema import ApplicationStatus

from continual.cluster import ResourceRequest, node_resources, publish_probe, ray_cluster
from continual.serve.config import ServerConfig
from continual.serve.core.auth import ApiKeyAuth
from continual.serve.replicated.affinity import AFFINITY_GROUPS
from continual.serve.replicated.gateway import create_gateway
from continual.serve.replicated.replica import Replica
from continual.serve.replicated.rolling_refresh import POLL
from registry import Registry
from tasks.errors import InputError

MAX_ONGOING_REQUESTS = 128  # per replica; beyond that, requests of its groups go to other replicas
HEALTH_CHECK_TIMEOUT = 120.0  # seconds; generous, since a router may be built meanwhile
STARTUP_TIMEOUT = 1800.0  # seconds until all replicas must be ready: they load a large backbone and build a router
POLL_SECONDS = 0.2  # seconds between two looks at their status


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """The number of replicas and the resources of each.

    Attributes:
        count: Number of replicas.
        cpus: CPU cores of each replica.
        gpus: GPUs of each replica; a fraction shares one.
        address: Address of a Ray cluster; None for a local one that begins and ends with the replicas.
        name: Name of the Ray Serve application; it replaces an application of the same name on the cluster.
    """

    count: int
    cpus: float
    gpus: float
    address: str | None
    name: str


@contextmanager
def deploy_replicas(config: ServerConfig, replicas: ReplicaConfig) -> Iterator[FastAPI]:
    """Deploy replicas and yield the gateway application; at the end of the block, drain and remove them.

    Args:
        config: Settings of each replica's server.
        replicas: Number and resources of the replicas.

    Raises:
        InputError: The cluster cannot be reached or is too small, or a replica cannot start.
    """
    with (
        Registry.open(config.registry, config.blobs) as registry,
        publish_probe(registry) as probe,
        ray_cluster(replicas.address or "local"),
    ):
        check_capacity(replicas)
        registry_url, blobs_url = registry.urls()  # absolute, since replicas have other working folders
        replica_config = replace(config, registry=registry_url, blobs=blobs_url)
        deployment = _deployment(config, replicas)
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
            application = deployment.bind(replica_config, probe, replicas.count)
            yield create_gateway(
                _start(application, replicas),
                ApiKeyAuth(registry, open=config.local),
                local=config.local,
                limits=config.limits,
                poll=config.poll,
                groups=AFFINITY_GROUPS * replicas.count,
            )
        finally:
            serve.delete(replicas.name)
            if not serve.status().applications:
                serve.shutdown()


def _deployment(config: ServerConfig, replicas: ReplicaConfig) -> Any:
    return serve.deployment(
        num_replicas=replicas.count,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=config.limits.max_queued_rows,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=config.limits.seconds,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(Replica)


def check_capacity(replicas: ReplicaConfig) -> None:
    """Check that the cluster has the CPUs and GPUs of all replicas, which would otherwise wait for ever.

    Raises:
        InputError: It has not.
    """
    advice = "Give fewer --replicas, smaller --replica-cpus or --replica-gpus, or the --address of a larger cluster"
    ResourceRequest(replicas.cpus, replicas.gpus).require_capacity(
        node_resources(), replicas.count, what="replica", advice=advice
    )


def _start(application: serve.Application, replicas: ReplicaConfig) -> Any:
    """Start the replicas, wait until all are ready with equal backbones, and return their handle."""
    target = serve.RunTarget(application, name=replicas.name, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    end = time.monotonic() + STARTUP_TIMEOUT
    while (status := serve.status().applications[replicas.name]).status != ApplicationStatus.RUNNING:
        if status.status == ApplicationStatus.DEPLOY_FAILED:
            raise InputError(f"no replica could begin: {_failure_line(status.message)}")
        _wait_before(end, replicas)
    while len(fingerprints := handle.broadcast("fingerprint").results(timeout_s=POLL)) < replicas.count:
        _wait_before(end, replicas)  # the handle learns of the replicas one by one
    if len(distinct := {*fingerprints}) > 1:
        raise InputError(
            f"the replicas hold backbones with the fingerprints {', '.join(sorted(name[:12] for name in distinct))}; "
            "have the same weights on all nodes"
        )
    return handle


def _wait_before(end: float, replicas: ReplicaConfig) -> None:
    if time.monotonic() > end:
        raise InputError(
            f"{replicas.count} replicas were not ready within {STARTUP_TIMEOUT:g} s; see whether others use what "
            "the cluster has, and give fewer --replicas"
        )
    time.sleep(POLL_SECONDS)


def _failure_line(message: str) -> str:
    """Return the line of Ray Serve's message that names the error raised in the replica."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else message)
