"""Checks of this machine for training and serving; `preflight` has the checks of a cluster."""

import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from genflow.errors import GenflowError, SetupError
from genflow.launch.preflight import Check
from genflow.storage.store import Store
from genflow.system import environment
from genflow.system.source_hash import resources_dir

NEEDED_BYTES = 2 * 10**9  # more than the shards, checkpoints and MLflow database of a small run need
PACKAGES = {"torch": "2.9", "ray": "2.60", "mlflow": "3.17.2", "pyarrow": "18", "pillow": "11", "pydantic": "2.9"}


def checks() -> Iterator[Check]:
    """Check Python, packages, device, store, Ray's token, the loopback interface, and the files that genflow ships."""
    version = platform.python_version()
    yield Check("python", _is_at_least(version, "3.11"), version, "genflow needs Python 3.11 or newer")
    for package, least in PACKAGES.items():
        yield _package(package, least)
    yield _torch()
    yield _store()
    yield _temporary()
    yield _token()
    yield _loopback()
    missing = [name for name in ("jobs", "pipelines") if not (resources_dir() / name).is_dir()]
    cure = "reinstall genflow: its wheel contains both folders"
    yield Check("jobs and pipelines", not missing, str(resources_dir()), cure)


def _package(package: str, least: str) -> Check:
    try:
        have = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, False, "not installed", f"pip install -c constraints.txt '{package}>={least}'")
    return Check(package, _is_at_least(have, least), have, f"pip install -c constraints.txt '{package}>={least}'")


def _is_at_least(have: str, least: str) -> bool:
    """Whether a version is at least another one by PEP 440; False for text that is not a version."""
    try:
        return Version(have.removesuffix("+")) >= Version(least)  # a Python built from a checkout ends in "+"
    except InvalidVersion:
        return False


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch imports", False, str(error), "pip install -c constraints.txt torch")
    if torch.cuda.is_available():
        return Check("device", True, f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}")
    if torch.backends.mps.is_available():
        return Check("device", True, "Apple GPU (MPS)")
    from genflow.training.precision import multiplies_bfloat16

    fast = " with bf16" if multiplies_bfloat16(torch.device("cpu")) else ""
    return Check("device", True, f"CPU × {environment.cores()}{fast}")


def _store() -> Check:
    cure = f"set GENFLOW_STORE to a writable folder with more than {NEEDED_BYTES / 1e9:g} GB of free space"
    try:
        root = Store().root
        nearest = next(p for p in (root, *root.parents) if p.exists())
        free = shutil.disk_usage(nearest).free
        writable = os.access(nearest, os.W_OK)
        found = f"{root}, {free / 1e9:.0f} GB free" + ("" if writable else ", not writable")
        return Check("store", writable and free > NEEDED_BYTES, found, cure)
    except (GenflowError, OSError) as error:
        return Check("store", False, str(error), cure)


def _temporary() -> Check:
    """Temporary files: a folder that can be written, with a path that is short enough for Ray's sockets."""
    try:
        folder = environment.ray_temp_folder()
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 65536)
        return Check("temporary files", True, str(folder))
    except SetupError as error:
        return Check("temporary files", False, error.message, error.hint)
    except OSError as error:
        return Check("temporary files", False, str(error), "set TMPDIR to a writable folder with free space")


def _token() -> Check:
    try:
        return Check("Ray token", True, f"{environment.ensure_token()} (only you can read it)")
    except SetupError as error:
        return Check("Ray token", False, error.message, error.hint)


def _loopback() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)):
            return Check("loopback", True, "127.0.0.1")
    except OSError as error:
        return Check(
            "loopback", False, str(error), "Ray and MLflow need the loopback interface; run: ip link set lo up"
        )
