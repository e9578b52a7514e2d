"""How several workers hear that somebody asked a run to stop: a bell that the driver rings and the first one hears.

The loop's own reports carry it from the first worker to the others, so that all of them end at one step.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

LISTEN_S = 0.5  # between two questions whether it has rung
SAVE_S = 45.0  # the longest that workers are waited for once it rang; a job is given 60


@ray.remote(num_cpus=0)
class StopFlag:
    """Rings once."""

    def __init__(self) -> None:
        self._rung = False

    def ring(self) -> None:
        """Ask the run to stop."""
        self._rung = True

    def has_rung(self) -> bool:
        """Whether somebody asked."""
        return self._rung


class StopPoller:
    """Whether a bell has rung, asked beside the training thread.

    Args:
        bell: the actor.
    """

    def __init__(self, bell: Any) -> None:
        self._heard = False
        threading.Thread(target=self._listen, args=(bell,), name="bell", daemon=True).start()

    def _listen(self, bell: Any) -> None:
        while not self._heard:
            with contextlib.suppress(Exception):  # the node that has it may be gone: then Ray ends this run
                self._heard = bool(ray.get(bell.has_rung.remote(), timeout=10))
            time.sleep(LISTEN_S)

    def __call__(self) -> bool:
        return self._heard


def fit(run: Callable[[], Any], bell: Any, say: Callable[[str], None]) -> None:
    """Run, beside the main thread: in it, Ray would turn Ctrl-C into an exit with code 0. Ctrl-C rings the bell.

    Args:
        run: returns when the workers have ended.
        bell: what they hear.
        say: is told that they are asked to stop.

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
        say("stopping: the workers save first")
        with contextlib.suppress(Exception):
            ray.get(bell.ring.remote(), timeout=10)
        ended.wait(SAVE_S)  # a second Ctrl-C ends this, too
        raise
    if outcome:
        raise outcome[0]
