"""Peak memory of this process during a block of code.

On Linux the kernel's high-water mark of resident memory is reset first, so the result is the peak of the block. On
other systems it is the peak of the process so far. On a GPU it is the peak that PyTorch allocated there.
"""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MB = 1024 * 1024


class Peak:
    """The peak memory of a block.

    Attributes:
        mb: in MB of 1,048,576 bytes; 0 until the block ends.
    """

    mb: float = 0.0


@contextlib.contextmanager
def peak(device: str = "cpu") -> Iterator[Peak]:
    """Measure a block: `with peak() as used: ...`, then read `used.mb`."""
    used, gpu = Peak(), device.startswith("cuda")
    if gpu:
        import torch  # imported here because the import is slow and only a GPU needs it

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            RESET.write_text("5", encoding="utf-8")
    try:
        yield used
    finally:
        used.mb = round(torch.cuda.max_memory_allocated(device) / MB if gpu else _resident(), 1)


def _resident() -> float:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KB elsewhere
    return maximum / MB if sys.platform == "darwin" else maximum / 1024
