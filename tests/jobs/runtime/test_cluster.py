"""A local Ray: on the loopback, and with the process's own signal handler."""

import os
import signal

import pytest
from support.processes import descendants, listening

from jobs.runtime.cluster import ray_cluster


@pytest.mark.ray
def test_every_socket_is_on_the_loopback(ray_local: None) -> None:
    """Neither Ray's daemons nor this process listen on an address that another machine can reach."""
    here, mapped = "0100007F", "0000000000000000FFFF00000100007F"  # 127.0.0.1, and as IPv6 writes it
    addresses = listening(descendants(os.getpid()))
    assert here in addresses
    assert addresses <= {here, mapped}


@pytest.mark.ray
def test_a_running_ray_is_used(ray_local: None) -> None:
    """If this process is connected to Ray, no other is started, and it still runs after the block."""
    import ray

    before = ray.get_runtime_context().gcs_address
    with ray_cluster():
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


@pytest.mark.ray
def test_sigterm_keeps_its_meaning(ray_local: None) -> None:
    """Ray's own handler, which exits with code 15, is not installed."""
    handler = signal.getsignal(signal.SIGTERM)
    assert getattr(handler, "__module__", "") != "ray._private.worker"
