"""The only module that sets the variables that Ray, MLflow, OpenMP and gloo read when they are imported.

It uses the standard library only, because it must run first. `docs/decisions/` gives the reason for each variable.
"""

import contextlib
import functools
import os
import pwd
import signal
import stat
import sys
import tempfile
from pathlib import Path

from genflow.errors import SetupError

RAY_SOCKET = "/ray12345678/s/session_2026-01-01_00-00-00_123456_1234567/sockets/plasma_store"
"""The longest path of a socket that Ray makes in the folder for temporary files."""
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
"""This machine's entries in NO_PROXY. Some readers of the variable do not understand a network such as 127.0.0.0/8."""


def set_defaults() -> None:
    """Set the defaults of every genflow process: no telemetry, no banners, no pickle."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # with Ray's own 15, jobs nearly stop while other processes use all cores
        "RAY_DEDUP_LOGS": "0",  # otherwise Ray drops repeated event lines
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line is printed twice
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an extra process that genflow does not use
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # seconds; a report waits for one poll of the controller
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "40",  # a hanging worker is detected within one minute, not ten
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",  # otherwise Tune prints tables between the events
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a search has its own log
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # seconds; a search needs no snapshots
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    ensure_home()
    keep_loopback_direct()


def ensure_home() -> None:
    """Set HOME and USER for a user id without an entry in the user database, as containers use them.

    `Path.home` and `getpass.getuser` raise an error for such a user, in Ray, MLflow and torch too. The home folder is
    a private folder in the folder for temporary files.

    Raises:
        SetupError: the folder cannot be made, or is not private to this user.
    """
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
    else:
        return
    if os.environ.get("HOME"):
        return
    folder = Path(tempfile.gettempdir()) / f"genflow-{os.getuid()}"
    hint = "export HOME=FOLDER, a folder that you can write to"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SetupError(f"HOME is not set, and {folder} cannot be made: {error.strerror}", hint) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SetupError(f"HOME is not set, and {folder} is not private to user id {os.getuid()}", hint)
    os.environ["HOME"] = str(folder)


def cache_folder() -> Path:
    """This machine's folder for what genflow can make again: `$GENFLOW_CACHE`, else `~/.cache/genflow`."""
    return Path(os.environ.get("GENFLOW_CACHE") or Path.home() / ".cache" / "genflow").expanduser().absolute()


def ray_temp_folder() -> Path:
    """The folder in which a local Ray's own folder is made: RAY_TMPDIR, or the folder for temporary files.

    Raises:
        SetupError: its path is so long that Ray's sockets in it would exceed the limit of the operating system.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR", "TEMP", "TMP") if os.environ.get(name)), "TMPDIR")
    given = os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else tempfile.gettempdir())
    folder = Path(given).absolute()
    longest = (103 if sys.platform == "darwin" else 107) - len(RAY_SOCKET)
    if (length := len(os.fsencode(folder))) > longest:
        raise SetupError(
            f"the path of the folder for temporary files has {length} bytes, and Ray's sockets in it allow {longest}: "
            f"{folder}",
            f"export {name}=/tmp",
        )
    return folder


def keep_loopback_direct() -> None:
    """Add this machine to NO_PROXY, for libraries that send their own requests: the clients of Ray and MLflow.

    `requests` sends a request for 127.0.0.1, and the token in it, to HTTP_PROXY unless NO_PROXY names that address.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    current = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [part.strip() for part in current.split(",") if part.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)


def token_path() -> Path:
    """The file from which Ray reads its token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str:
    """Ray's token, from the variable or the file that Ray reads; empty if there is none.

    Raises:
        SetupError: the file cannot be read.
    """
    if value := os.environ.get("RAY_AUTH_TOKEN"):
        return value.strip()
    path = token_path()
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read Ray's token {path}: {error}", f"as its owner: chmod 600 {path}") from error


def ensure_token() -> Path:
    """Create Ray's token with mode 0600 (Ray creates it world-readable), or correct the mode of an existing token.

    Raises:
        SetupError: the file cannot be written.
    """
    path = token_path()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(os.urandom(32).hex())
        elif stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
    except FileExistsError:
        pass  # another process has just created it
    except OSError as error:
        raise SetupError(
            f"cannot write Ray's token {path}: {error.strerror}",
            "set RAY_AUTH_TOKEN_PATH to a file that you can write to",
        ) from error
    return path


def configure_local_ray(port: int | None = None) -> int:
    """Prepare a local Ray: all sockets on 127.0.0.1, token authentication, a known GCS port.

    Call this before `import ray`. Without RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, Ray opens eight sockets on all
    interfaces. Without RAY_ADDRESS, Ray's own actors may connect to another Ray on the host.

    Args:
        port: the GCS port; None: a free one.

    Returns:
        The GCS port.
    """
    from genflow.system.ports import free_port

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


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def lower_priority(by: int) -> None:
    """Let this process's threads yield to other processes that need the same core.

    The threads do not preempt a running thread and get a smaller share of the core. Threads and processes that they
    start inherit both.

    Args:
        by: added to the niceness, which is at most 19.
    """
    niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + by)
    for task in Path("/proc/self/task").glob("[0-9]*"):  # the folder exists on Linux only
        with contextlib.suppress(OSError):
            os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)


def die_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Make Linux send this process a signal when its parent exits for any reason. Does nothing on other systems."""
    if sys.platform == "linux":
        import ctypes  # not at the top: `genflow --help` imports this module

        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG


@functools.cache
def tune_malloc() -> None:
    """Make glibc keep freed memory of tensors for the next tensors. Does nothing with another C library.

    By default glibc returns the end of its heap to the kernel after each tensor, and the kernel zeroes the pages again
    for the next one. This takes a fifth of the time of sampling 64 images of 28x28 with a U-Net on one core, and a
    tenth of the time of training. Peak memory stays the same: tensors above 32 MB still come from the kernel, because
    they would fragment the heap.
    """
    import ctypes

    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)
