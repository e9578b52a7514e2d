"""Ctrl-C in the driver waits until the workers have saved."""

import signal
import threading
import time

import pytest

pytest.importorskip("ray")

from jobs.runtime.train import stop_signal


def test_ctrl_c_waits_for_the_workers() -> None:
    """KeyboardInterrupt is raised only after the run has ended."""
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


def test_an_error_of_the_run_is_raised() -> None:
    """`fit` raises the error of the second thread."""

    def run() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        stop_signal.fit(run, None, lambda _: None)
