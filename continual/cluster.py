"""A connection to a cluster of Ray. Needs the extra `ray`."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import ray

from continual.errors import EngineError
from continual.room import Resources

# Of a cluster that is started here: it tells nobody, and its workers are as urgent as learning in this process is.
LOCAL_CLUSTER_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`; one that was open before stays open.

    Without an address that is the one that RAY_ADDRESS names or that runs on this machine, else one that begins and
    ends with the block; `local` is always such a one. Raises EngineError where none can be had.
    """
    if ray.is_initialized():
        yield
        return
    if address and address.startswith("ray://"):
        raise EngineError(f"address {address!r} is of Ray Client; run on a node of the cluster, and give host:port")
    for name, value in LOCAL_CLUSTER_ENV.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,  # a cluster that runs already says no to it
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"no Ray cluster at {address or os.environ.get('RAY_ADDRESS') or 'this machine'} can be used: {reason} "
            "Start one (`ray start --head`), or leave --address out for one of this machine alone"
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints there which workers died, where our answer is to stand alone
            yield
    finally:
        ray.shutdown()


def node_resources() -> list[Resources]:
    """What each node of the cluster has that is alive, whoever uses it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
