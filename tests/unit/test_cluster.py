"""Placement of processes on cluster nodes: how many fit, each within one node."""

import pytest

from continual.cluster import ResourceRequest
from continual.errors import EngineError

SIX = {"CPU": 6.0, "memory": 8 * 2.0**30}


def test_a_process_does_not_span_two_nodes() -> None:
    share = ResourceRequest(cpus=4, gpus=0)
    assert share.require_capacity([SIX, SIX], 2, what="replica", advice="") == 2
    with pytest.raises(EngineError, match=r"room for 2 replicas with 4 CPUs.*3 are needed.*6 CPUs.*Give fewer"):
        share.require_capacity([SIX, SIX], 3, what="replica", advice="Give fewer")


def test_fractions_of_a_core_add_up() -> None:
    assert [ResourceRequest(cpus=part, gpus=0).fits_on({"CPU": 1.0}) for part in (0.1, 0.2, 0.3, 1.0)] == [10, 5, 3, 1]
    assert ResourceRequest(cpus=1, gpus=0.1).fits_on({"CPU": 32.0, "GPU": 1.0}) == 10
    assert ResourceRequest(cpus=1, gpus=0, memory=3 << 30).fits_on(SIX) == 2
    assert ResourceRequest(cpus=1, gpus=1).fits_on(SIX) == 0
