"""The device of this process, chosen in one place: what it was given, else CUDA, else Apple's MPS, else the CPU.

A process is given a device by `--device` or `cluster.device`; else by Ray, of which `jobs/runtime/gpus.py` says what it
gave a worker; else by the variable GENFLOW_DEVICE. A child process inherits what Ray gave its parent.
"""

import os

from genflow.errors import SetupError, UsageError, similar

KINDS = ("auto", "cpu", "cuda", "mps")
BY_USER, BY_RAY = "GENFLOW_DEVICE", "GENFLOW_DEVICE_OF_WORKER"  # environment variables
DETERMINISTIC = "GENFLOW_DETERMINISTIC"


def choose(wanted: str = "auto") -> str:
    """The name of a torch device for this process.

    Args:
        wanted: auto, cpu, cuda, mps, or a GPU by its number, such as cuda:1.

    Raises:
        UsageError: the name is none of these.
        SetupError: PyTorch does not find that device.
    """
    check(wanted)
    if is_deterministic():
        _use_deterministic_kernels()
    if wanted == "auto":
        wanted = os.environ.get(BY_RAY) or os.environ.get(BY_USER) or "auto"
        check(wanted)
    if wanted == "auto":
        return best()
    import torch

    kind, _, number = wanted.partition(":")
    missing = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if missing or (number and int(number) >= torch.cuda.device_count()):
        have = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise SetupError(
            f"the device {wanted} was requested, and PyTorch finds {have if kind == 'cuda' else 'no MPS device'}",
            "use cpu, or install PyTorch for this device; genflow doctor shows what PyTorch finds",
        )
    return wanted


def is_deterministic() -> bool:
    """Whether the user asks for the same bits on every run on a GPU: GENFLOW_DETERMINISTIC=1.

    PyTorch then uses only kernels that sum in a fixed order, and an operation without such a kernel is an error. An
    engine draws in batches of one size, because the kernel, and with it the order, is chosen by the size.
    """
    return os.environ.get(DETERMINISTIC, "0") not in ("", "0")


def _use_deterministic_kernels() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    import torch

    torch.use_deterministic_algorithms(True)


def best() -> str:
    """The fastest device that PyTorch finds."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check(name: str) -> None:
    """Check the name of a device, without importing torch.

    Raises:
        UsageError: it is not auto, cpu, mps, cuda or cuda:NUMBER.
    """
    kind, _, number = name.partition(":")
    if kind not in KINDS or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"unknown device {name!r}{similar(name, list(KINDS))}", f"devices: {', '.join(KINDS)}, cuda:1")
