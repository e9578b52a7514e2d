"""Ask several workers to save and stop: the driver sets a flag in an actor, and the first worker polls it.

The loop's reports share the request with the other workers, so that all of them end at the same step.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

POLL_S = 0.5  # between two polls
SAVE_S = 45.0  # the driver waits so long for the workers to save; a stopped job has 60


@ray.remote(num_cpus=0)
class StopFlag:
    """An actor with a flag that can be set once."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Request the stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether the stop was requested."""
        return self._is_set


class StopPoller:
    """Returns whether the flag is set; a second thread polls it, so that training does not wait.

    Args:
        flag: handle of a `StopFlag` actor.
    """

    def __init__(self, flag: Any) -> None:
        self._stopped = False
        threading.Thread(target=self._poll, args=(flag,), name="stop-poller", daemon=True).start()

    def _poll(self, flag: Any) -> None:
        while not self._stopped:
            with contextlib.suppress(Exception):  # the node of the actor may be gone; then Ray ends this run
                self._stopped = bool(ray.get(flag.is_set.remote(), timeout=10))
            time.sleep(POLL_S)

    def __call__(self) -> bool:
        return self._stopped


def fit(run: Callable[[], Any], flag: Any, notify: Callable[[str], None]) -> None:
    """Call `run` in a second thread: in the main thread Ray turns Ctrl-C into exit code 0. Ctrl-C sets the flag.

    Args:
        run: returns when the workers have ended.
        flag: handle of the `StopFlag` actor that the first worker polls.
        notify: called with a message when the stop is requested.

    Raises:
        KeyboardInterrupt: Ctrl-C or a signal asked to stop; the workers have saved, or did not within 45 seconds.
        BaseException: what `run` raised.
    """
    outcome: list[BaseException] = []
    ended = threading.Event()  # after a signal, `Thread.join` regards the thread as ended (Python 3.11)

    def work() -> None:
        try:
            run()
        except BaseException as error:
            outcome.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="fit", daemon=True).start()
    try:
        ended.wait()
    except KeyboardInterrupt:
        notify("stopping: the workers save first")
        with contextlib.suppress(Exception):
            ray.get(flag.set.remote(), timeout=10)
        ended.wait(SAVE_S)  # a second Ctrl-C ends the waiting
        raise
    if outcome:
        raise outcome[0]
