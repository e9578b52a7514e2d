"""Where a job finds its Ray: the one it runs in, or one of its own on this machine, gone when the job is."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

from genflow.errors import SetupError
from genflow.system import environment, source_hash
from jobs.runtime.entrypoint import verbose

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a submitted job


def is_submitted() -> bool:
    """Whether this process is the entry point of a job that was sent to a Ray cluster."""
    return IN_A_JOB in os.environ


@contextlib.contextmanager
def ray_cluster(num_cpus: int | None = None, dashboard: bool = False, logs: bool = True) -> Iterator[None]:
    """Be connected to Ray while in the block.

    A Ray that this process is connected to, or whose submitted job it is, is joined and left alone. Otherwise
    one is started on the loopback, with a token, and stopped at the end.

    Args:
        num_cpus: how many tasks may run at once on a Ray of one's own; None: the cores of this machine.
        dashboard: whether that Ray has a dashboard.
        logs: whether what its workers print arrives here.

    Raises:
        SetupError: Ray does not start.
    """
    started = sys.modules.get("ray")
    if started is not None and started.is_initialized():
        yield
        return
    submitted = is_submitted()
    before = {name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT")}
    if not submitted:
        environment.configure_local_ray()  # before the import: Ray reads it once
    import ray

    level = logging.INFO if verbose() else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if submitted:
            # For Ray Train's cleaner: where another Ray runs on the head, it asks that one about its controller,
            # hears of none, and takes the workers' places away in the middle of a run
            pinned = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}
            ray.init(logging_level=level, runtime_env={"env_vars": pinned})
        else:
            # Ray puts the current folder on its workers' path, where a stray numpy.py would be found first
            with contextlib.chdir(source_hash.resources_dir()):
                ray.init(
                    address="local",
                    num_cpus=num_cpus or environment.cores(),
                    include_dashboard=dashboard,
                    dashboard_port=environment.free_port() if dashboard else None,
                    logging_level=level,
                    log_to_driver=logs or verbose(),
                )
    except Exception as error:  # a raylet that is late raises just that
        raise SetupError(f"Ray does not start: {str(error).strip().splitlines()[0]}", "genflow doctor") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place, which ends with code 15
    try:
        yield
    finally:
        ray.shutdown()
        if not submitted:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
