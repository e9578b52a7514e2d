"""The check of a request for workers against the resources of the nodes."""

import pytest

from genflow.errors import ResourceError
from genflow.launch import capacity

SMALL, LARGE = {"CPU": 2.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "fitting"),
    [(5, 2, 0, 5), (2, 1, 1, 2), (3, 1, 1, 2), (11, 1, 0, 10), (1, 9, 0, 0), (20, 0.5, 0, 20), (4, 0.1, 0.5, 4)],
)
def test_a_worker_needs_one_node(workers: int, cpus: float, gpus: float, fitting: int) -> None:
    """A worker needs all its resources on one node; several workers may share a CPU or GPU."""
    if workers <= fitting:
        capacity.require([SMALL, LARGE], workers, cpus, gpus)
        return
    with pytest.raises(ResourceError, match=f"2 nodes with 10 CPU, 2 GPU can run {fitting}"):
        capacity.require([SMALL, LARGE], workers, cpus, gpus)


def test_the_hint_is_a_number_that_fits() -> None:
    """The hint names the number of workers that fit, if at least one does."""
    with pytest.raises(ResourceError) as error:
        capacity.require([LARGE], 3, 1, 1)
    assert error.value.hint == "--set cluster.workers=2, or add nodes"
    with pytest.raises(ResourceError) as error:
        capacity.require([SMALL], 1, 1, 1)
    assert error.value.hint == "request less, or add larger nodes"


def test_what_an_autoscaler_may_add_counts() -> None:
    """cluster.yaml once grown: one head, and of each kind as many as its own limit and the cluster's allow."""
    from jobs.runtime.resources import nodes_when_grown

    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 9},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 1},
    }
    nodes = nodes_when_grown({"max_workers": 3, "head_node_type": "head", "available_node_types": kinds})
    assert nodes == [{"CPU": 0}, *[{"CPU": 4, "GPU": 1}] * 3, {"CPU": 8}]


def test_the_interface_of_an_address() -> None:
    """The network interface for gloo is the one with the node's address."""
    from jobs.runtime.train.worker_group import interface_of

    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
