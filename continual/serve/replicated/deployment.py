"""Replicas on a cluster of Ray: this machine alone, or one that is there already."""

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
from continual.serve.replicated.affinity import AFFINITY_GROUPS
from continual.serve.replicated.gateway import create_gateway
from continual.serve.replicated.replica import Replica
from continual.serve.replicated.rolling_refresh import POLL
from registry import Registry
from tasks.errors import InputError

MAX_ONGOING_REQUESTS = 128  # requests that a replica has in hand; those of its groups go to others then
DEPLOY_TIMEOUT = 120.0  # seconds for each look whether a replica lives: a router may be made meanwhile
STARTUP_TIMEOUT = 1800.0  # seconds in which all replicas should be ready: a large backbone is read, a router made
POLL_SECONDS = 0.2  # seconds between two looks whether they are


@dataclass(frozen=True, kw_only=True)
class ReplicaConfig:
    """How many replicas, and what each is given. cpus, gpus: cores and GPUs of each · address: of a cluster, None for
    one that begins and ends with the replicas · name: of the application, whose replicas another of that name on the
    cluster replaces.
    """

    count: int
    cpus: float
    gpus: float
    address: str | None
    name: str


@contextmanager
def deploy_replicas(recipe: ServerConfig, replicas: ReplicaConfig) -> Iterator[FastAPI]:
    """An application that answers by replicas, until the block ends; what is being answered is finished first.

    Raises InputError where the cluster is not there or too small, or a replica cannot begin.
    """
    with (
        Registry.open(recipe.registry, recipe.blobs) as registry,
        publish_probe(registry) as known,
        ray_cluster(replicas.address or "local"),
    ):
        check_capacity(replicas)
        where, blobs = registry.urls()  # which hold in every working folder
        deployed = serve.deployment(
            num_replicas=replicas.count,
            ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
            max_ongoing_requests=MAX_ONGOING_REQUESTS,
            max_queued_requests=recipe.limits.max_queued_rows,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=recipe.limits.seconds,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_timeout_s=DEPLOY_TIMEOUT,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )(Replica)
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
            there = replace(recipe, registry=where, blobs=blobs)
            handle = _begun(deployed.bind(there, known, replicas.count), replicas)
            yield create_gateway(
                handle,
                local=recipe.local,
                limits=recipe.limits,
                poll=recipe.poll,
                groups=AFFINITY_GROUPS * replicas.count,
            )
        finally:
            serve.delete(replicas.name)
            if not serve.status().applications:
                serve.shutdown()


def check_capacity(replicas: ReplicaConfig) -> None:
    """Raises InputError where the replicas would wait for ever for cores or GPUs."""
    advice = "Give fewer --replicas, smaller --replica-cpus or --replica-gpus, or the --address of a larger cluster"
    ResourceRequest(replicas.cpus, replicas.gpus).require_capacity(
        node_resources(), replicas.count, what="replica", advice=advice
    )


def _begun(application: serve.Application, replicas: ReplicaConfig) -> Any:
    """The handle of all replicas, when they are ready. Raises InputError where they do not come to be so."""
    target = serve.RunTarget(application, name=replicas.name, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    end = time.monotonic() + STARTUP_TIMEOUT
    while (found := serve.status().applications[replicas.name]).status != ApplicationStatus.RUNNING:
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            raise InputError(f"no replica could begin: {_reason(found.message)}")
        _require_before(end, replicas)
    while len(found := handle.broadcast("fingerprint").results(timeout_s=POLL)) < replicas.count:
        _require_before(end, replicas)  # the handle hears of replicas one by one
    if len(others := {*found}) > 1:
        raise InputError(
            f"the replicas hold backbones with the fingerprints {', '.join(sorted(name[:12] for name in others))}; "
            "have the same weights on all nodes"
        )
    return handle


def _require_before(end: float, replicas: ReplicaConfig) -> None:
    if time.monotonic() > end:
        raise InputError(
            f"{replicas.count} replicas were not ready within {STARTUP_TIMEOUT:g} s; see whether others use what "
            "the cluster has, and give fewer --replicas"
        )
    time.sleep(POLL_SECONDS)


def _reason(message: str) -> str:
    """Of all that Ray Serve says, the line with what was raised in the replica."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else message)
