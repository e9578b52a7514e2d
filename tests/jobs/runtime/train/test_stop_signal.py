"""Ctrl-C in the driver waits until the workers have saved."""

import signal
import sys
import threading
import time

import pytest

pytest.importorskip("ray")

from jobs.runtime.train import stop_signal


def test_ctrl_c_waits_for_the_workers() -> None:
    """KeyboardInterrupt is raised only after the run has ended."""
    asked, done = threading.Event(), []

    def run() -> None:
        while not waits_in_fit():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        asked.wait(60)
        time.sleep(0.3)
        done.append("saved")

    with pytest.raises(KeyboardInterrupt):
        stop_signal.fit(run, None, lambda _: asked.set())
    assert done == ["saved"]


def waits_in_fit() -> bool:
    """Whether the main thread waits for the run to end; `Thread.start` waits as well, but only for the thread."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame and frame.f_code is not threading.Event.wait.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return bool(frame and frame.f_back and frame.f_back.f_code is stop_signal.fit.__code__)


def test_an_error_of_the_run_is_raised() -> None:
    """`fit` raises the error of the second thread."""

    def run() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        stop_signal.fit(run, None, lambda _: None)
