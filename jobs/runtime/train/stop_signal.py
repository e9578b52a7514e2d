"""How several workers hear that somebody asked a run to stop: a flag that the driver rings and the first one hears.

The loop's own reports carry it from the first worker to the others, so that all of them end at one step.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

POLL_S = 0.5  # between two questions whether it has rung
SAVE_S = 45.0  # the longest that workers are waited for once it rang; a job is given 60


@ray.remote(num_cpus=0)
class StopFlag:
    """Rings once."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask the run to stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self._is_set


class StopPoller:
    """Whether a flag has rung, asked beside the training thread.

    Args:
        flag: the actor.
    """

    def __init__(self, flag: Any) -> None:
        self._stopped = False
        threading.Thread(target=self._poll, args=(flag,), name="stop-poller", daemon=True).start()

    def _poll(self, flag: Any) -> None:
        while not self._stopped:
            with contextlib.suppress(Exception):  # the node that has it may be gone: then Ray ends this run
                self._stopped = bool(ray.get(flag.is_set.remote(), timeout=10))
            time.sleep(POLL_S)

    def __call__(self) -> bool:
        return self._stopped


def fit(run: Callable[[], Any], flag: Any, notify: Callable[[str], None]) -> None:
    """Run, beside the main thread: in it, Ray would turn Ctrl-C into an exit with code 0. Ctrl-C rings the flag.

    Args:
        run: returns when the workers have ended.
        flag: what they hear.
        notify: is told that they are asked to stop.

    Raises:
        KeyboardInterrupt: somebody asked to stop; the workers have saved, or did not within 45 seconds.
        BaseException: what `run` raised.
    """
    outcome: list[BaseException] = []
    ended = threading.Event()  # `Thread.join` that a signal interrupts takes the thread to have ended (Python 3.11)

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
        ended.wait(SAVE_S)  # a second Ctrl-C ends this, too
        raise
    if outcome:
        raise outcome[0]
