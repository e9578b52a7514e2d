"""Whoever stops several workers waits until they have saved."""

import signal
import threading
import time

import pytest

pytest.importorskip("ray")

from jobs.runtime.train import stop_signal


def test_the_workers_are_waited_for() -> None:
    """A signal interrupts the waiting, and the waiting goes on until the run has ended."""
    asked, done = threading.Event(), []

    def run() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        asked.wait(10)
        time.sleep(0.3)
        done.append("saved")

    with pytest.raises(KeyboardInterrupt):
        stop_signal.fit(run, None, lambda _: asked.set())
    assert done == ["saved"]


def test_what_ends_the_run_is_raised() -> None:
    def run() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        stop_signal.fit(run, None, lambda _: None)
