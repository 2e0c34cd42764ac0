"""Replicas on a cluster of Ray: this machine alone, or one that is there already."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from fastapi import FastAPI
from ray import serve

from continual.cluster import connected
from continual.errors import InputError
from continual.serve.recipe import Recipe
from continual.serve.replicated.face import face
from continual.serve.replicated.groups import GROUPS
from continual.serve.replicated.replica import Replica
from registry import Registry, identity

ONGOING = 128  # requests that a replica has in hand; those of its groups go to others then
PATIENCE = 120.0  # seconds for each look whether a replica lives: a router may be made meanwhile


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas, and what each is given. cpus, gpus: cores and GPUs of each · address: of a cluster, None for
    one that begins and ends with the replicas · name: of the application, whose replicas another of that name replaces.
    """

    count: int
    cpus: float
    gpus: float
    address: str | None
    name: str


@contextmanager
def replicated(recipe: Recipe, replicas: Replicas) -> Iterator[FastAPI]:
    """An application that answers by replicas, until the block ends; what is being answered is finished first.

    Raises InputError where the cluster is not there or too small, or a replica cannot begin.
    """
    registry = _shared(recipe)
    with connected(replicas.address or "local"):
        fits(replicas)
        deployed = serve.deployment(
            num_replicas=replicas.count,
            ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
            max_ongoing_requests=ONGOING,
            max_queued_requests=recipe.limits.waiting,
            max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=recipe.limits.seconds,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_timeout_s=PATIENCE,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )(Replica)
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
            try:
                handle = serve.run(
                    deployed.bind(recipe, registry, replicas.count), name=replicas.name, route_prefix=None
                )
            except RuntimeError as error:
                raise InputError(f"no replica could begin: {_reason(error)}") from error
            yield face(
                handle,
                local=recipe.local,
                limits=recipe.limits,
                poll=recipe.poll,
                groups=GROUPS * replicas.count,
            )
        finally:
            serve.delete(replicas.name)
            if not serve.status().applications:
                serve.shutdown()


def fits(replicas: Replicas) -> None:
    """Raises InputError where the replicas would wait for ever for cores or GPUs."""
    has = ray.cluster_resources()
    for what, each, option in (("CPU", replicas.cpus, "--replica-cpus"), ("GPU", replicas.gpus, "--replica-gpus")):
        if (needed := each * replicas.count) > has.get(what, 0):
            raise InputError(
                f"{replicas.count} replicas with {each:g} {what}s each need {needed:g}, and the cluster has "
                f"{has.get(what, 0):g}; give fewer --replicas, a smaller {option}, or the --address of a larger cluster"
            )


def _reason(error: Exception) -> str:
    """Of all that Ray Serve says, the line with what was raised in the replica."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else str(error))


def _shared(recipe: Recipe) -> str:
    """The identity of the registry that all replicas are to have. Raises InputError where others cannot reach it."""
    with Registry.open(recipe.registry, recipe.blobs) as registry:
        registry.urls()
        return identity(registry)
