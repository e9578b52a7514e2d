"""Whether machines can hold the workers that somebody asks for."""

import pytest

from genflow.errors import ResourceError
from genflow.launch import capacity

SMALL, LARGE = {"CPU": 2.0, "memory": 1e9}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "room"),
    [(5, 2, 0, 5), (2, 1, 1, 2), (3, 1, 1, 2), (11, 1, 0, 10), (1, 9, 0, 0), (20, 0.5, 0, 20), (4, 0.1, 0.5, 4)],
)
def test_workers_are_not_cut_in_two(workers: int, cpus: float, gpus: float, room: int) -> None:
    """A worker needs one node that has all it asks for; fractions of a CPU or GPU are shared."""
    if workers <= room:
        capacity.require([SMALL, LARGE], workers, cpus, gpus)
        return
    with pytest.raises(ResourceError, match=f"2 nodes with 10 CPU, 2 GPU can hold {room}"):
        capacity.require([SMALL, LARGE], workers, cpus, gpus)


def test_the_cure_is_a_number_that_fits() -> None:
    """The hint names how many workers would fit, where any would."""
    with pytest.raises(ResourceError) as error:
        capacity.require([LARGE], 3, 1, 1)
    assert error.value.hint == "--set cluster.workers=2, or add nodes"
    with pytest.raises(ResourceError) as error:
        capacity.require([SMALL], 1, 1, 1)
    assert error.value.hint == "ask for less, or add nodes that have it"


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


def test_an_interface_is_known_by_its_address() -> None:
    """gloo is told the interface that has the node's address."""
    from jobs.runtime.train.worker_group import interface_of

    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
