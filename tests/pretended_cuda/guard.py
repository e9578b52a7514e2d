"""Compile and load guard.cpp: torch's CPU build then believes that there is one CUDA device.

The library must be loaded before torch, which asks once whether there is CUDA. Therefore the pretended device needs a
process of its own.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def missing() -> str:
    """Why the library cannot be compiled here; "" if it can."""
    if sys.platform != "linux":
        return f"the pretended CUDA device needs Linux, and this is {sys.platform}"
    if shutil.which("g++") is None:
        return "the pretended CUDA device needs a compiler, and there is no g++"
    if "+cpu" not in version("torch"):
        return f"the pretended CUDA device needs a CPU build of torch, and this is {version('torch')}"
    return ""


def compiled(cache: Path) -> Path:
    """The library in a folder that later sessions reuse; compiling takes about 12 seconds."""
    content = SOURCE.read_bytes() + version("torch").encode()
    library = cache / f"guard-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if library.exists():
        return library
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    cache.mkdir(parents=True, exist_ok=True)
    attempt = library.with_suffix(f".{os.getpid()}")
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{home / 'include'}", str(SOURCE)]
    command += [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}", "-o", str(attempt)]
    subprocess.run(command, check=True)
    attempt.rename(library)
    return library


def load(library: Path) -> None:
    """Load the library into this process.

    Raises:
        ImportError: torch is imported already.
    """
    if "torch" in sys.modules:
        raise ImportError("the pretended CUDA device must be loaded before torch")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
