"""Connect a job to Ray: the cluster that it was submitted to, or a local Ray that stops with the job."""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from genflow.errors import ResourceError, SetupError
from genflow.storage import temporary
from genflow.storage.files import disk_error
from genflow.system import environment, ports, source_hash
from jobs.runtime.entrypoint import verbose

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a submitted job


def is_submitted() -> bool:
    """Whether this process is the entry point of a job that was submitted to a Ray cluster."""
    return IN_A_JOB in os.environ


@contextlib.contextmanager
def ray_cluster(num_cpus: int | None = None, dashboard: bool = False, logs: bool = True) -> Iterator[None]:
    """Be connected to Ray within the block.

    If this process is connected to Ray already, or is a submitted job, use that Ray and leave it running. Otherwise
    start a local Ray on the loopback, with a token, and stop it at the end.

    Args:
        num_cpus: CPUs of a local Ray; None: the cores of this machine.
        dashboard: whether a local Ray has a dashboard.
        logs: whether the output of its workers is printed here.

    Raises:
        SetupError: Ray does not start.
    """
    started = sys.modules.get("ray")
    if started is not None and started.is_initialized():
        yield
        return
    submitted = is_submitted()
    base = None if submitted else environment.ray_temp_folder()
    before = {name: os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT")}
    if not submitted:
        environment.configure_local_ray()  # before the import: Ray reads it once
    import ray

    folder = make_private_folder(base) if base else None
    level = logging.INFO if verbose() else logging.ERROR
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if submitted:
            # For Ray Train's cleanup process: without it, if another Ray runs on the head node, the process looks for
            # the controller in that Ray, finds none, and removes the placement group in the middle of a run
            pinned = {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}
            ray.init(logging_level=level, runtime_env={"env_vars": pinned})
        else:
            # Ray adds the current folder to its workers' import path, where a stray numpy.py would shadow numpy
            with contextlib.chdir(source_hash.resources_dir()):
                ray.init(
                    address="local",
                    _temp_dir=f"{folder}/s",  # Ray gives this folder mode 0777; the one around it stays private
                    num_cpus=num_cpus or environment.cores(),
                    include_dashboard=dashboard,
                    dashboard_port=ports.free_port() if dashboard else None,
                    logging_level=level,
                    log_to_driver=logs or verbose(),
                )
    except Exception as error:  # a raylet that starts too late raises a plain Exception
        ray.shutdown()
        _remove(folder)
        if (full := disk_error(error, folder or "")) is not None:
            raise full from error
        raise SetupError(f"Ray does not start: {str(error).strip().splitlines()[0]}", "genflow doctor") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has installed its own handler, which exits with code 15
    try:
        yield
    finally:
        ray.shutdown()
        _remove(folder)
        if not submitted:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def make_private_folder(base: Path) -> Path:
    """Make a folder for the session of a local Ray that other users cannot enter; remove those of killed processes.

    Ray makes its session folders writable for all users (mode 0777), with sockets, logs and working folders in them.

    Raises:
        ResourceError: the disk is full.
        SetupError: the folder cannot be made.
    """
    try:
        return temporary.make("ray", base)
    except OSError as error:
        if isinstance(full := disk_error(error, base), ResourceError):
            raise full from error
        hint = "set TMPDIR to a folder that you can write to"
        raise SetupError(f"Ray needs a folder in {base}: {error.strerror}", hint) from error


def _remove(folder: Path | None) -> None:
    """Remove the session folder of a local Ray that has ended."""
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
