"""The one place that sets the variables which Ray, MLflow, OpenMP and gloo read before they are imported.

Standard library only, because it must run first. `docs/decisions/` says why each of them is there.
"""

import contextlib
import ctypes
import functools
import os
import secrets
import signal
import socket
import stat
import sys
from pathlib import Path

from genflow.errors import SetupError

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
"""This machine in NO_PROXY; not every reader of the variable understands a network."""


def set_defaults() -> None:
    """What every genflow process wants: no telemetry, no banners, no pickle."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",  # an event line must never be folded away
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line appears twice
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that tells workers what they do not ask for
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for one controller poll
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "40",  # a worker that hangs is noticed within a minute, not ten
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables would stand between the events
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search has a record of its own
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # and needs no snapshots
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    keep_loopback_direct()


def keep_loopback_direct() -> None:
    """Name this machine in NO_PROXY, for the libraries that send requests of their own: Ray's client, MLflow's.

    `requests` sends a request for 127.0.0.1, and the token in it, to HTTP_PROXY unless NO_PROXY names that address.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    named = [part.strip() for part in given.split(",") if part.strip()]
    if "*" not in named:
        named += [host for host in LOOPBACK if host not in named]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(named)


def token_path() -> Path:
    """Where Ray reads its token from."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str:
    """Ray's token, from the variable or the file that Ray reads; empty if there is none.

    Raises:
        SetupError: the file cannot be read.
    """
    if named := os.environ.get("RAY_AUTH_TOKEN"):
        return named.strip()
    try:
        return token_path().read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read Ray's token {token_path()}: {error}", "chmod 600 it, as its owner") from error


def ensure_token() -> Path:
    """Create Ray's token with mode 0600 before Ray would write it world-readable; mend the mode if it did.

    Raises:
        SetupError: the file cannot be written.
    """
    path = token_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except FileExistsError:
        pass  # another process created it in this very moment
    except OSError as error:
        raise SetupError(
            f"cannot write Ray's token {path}: {error.strerror}", "set RAY_AUTH_TOKEN_PATH to a file you may write"
        ) from error
    return path


def configure_local_ray(port: int | None = None) -> int:
    """Prepare a Ray of this process's own: every socket on 127.0.0.1, the token on, the GCS port known.

    Must run before `import ray`. Without the first variable Ray listens on every interface with eight
    sockets; without RAY_ADDRESS a second Ray on the host confuses Ray's own actors.

    Returns:
        The GCS port.
    """
    set_defaults()
    if not os.environ.get("RAY_AUTH_TOKEN"):
        ensure_token()
    port = port or free_port()
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_GCS_SERVER_PORT=str(port),
        RAY_ADDRESS=f"127.0.0.1:{port}",
        RAY_AUTH_MODE="token",
    )
    return port


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether this process could listen on a port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port on the loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lower_priority(by: int) -> None:
    """Let this process's threads wait for those that compute, where both want one core.

    They neither interrupt a thread that runs, nor have as much of a core as it has. What starts later inherits that.
    """
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + by)
    for task in Path("/proc/self/task").glob("[0-9]*"):  # no such folder but on Linux
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)


def die_with_parent(by: int = signal.SIGTERM) -> None:
    """Ask Linux to end this process by this signal when its parent dies, however that dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)


@functools.cache
def tune_malloc() -> None:
    """Let glibc keep the memory of a network's tensors for the next ones; elsewhere nothing.

    It would give the end of its heap back to the kernel after each of them, to be zeroed page by page the next time: a
    fifth of the time of drawing 64 pictures of 28x28 by a U-Net on one core, a tenth of that of training. The most
    memory that a process takes stays the same: tensors of over 32 MB still come from the kernel, since a heap of such
    would be torn to pieces by what lies between them.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)
