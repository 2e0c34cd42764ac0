"""Fresh processes for tests, forked from one that has imported the libraries and done nothing else."""

from multiprocessing import get_context
from multiprocessing.context import ForkServerContext


def fresh_processes() -> ForkServerContext:
    """Return a context whose processes share nothing with this one, and start without importing everything anew."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["continual.learner", "continual.tracking.client", "tests.conftest"])
    return context
