"""Peak memory of this process while something runs.

On Linux the kernel's high-water mark of resident memory is set back first, so it is that of the block; elsewhere it is
that of the process so far. With a GPU it is what PyTorch allocated there.
"""

import contextlib
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MB = 1024 * 1024


class Peak:
    """What a block needed, once it is over.

    Attributes:
        mb: in MB of 1,048,576 bytes; 0 while the block goes on.
    """

    mb: float = 0.0


@contextlib.contextmanager
def peak(device: str = "cpu") -> Iterator[Peak]:
    """`with peak() as used: ...`, then `used.mb`."""
    used, gpu = Peak(), device.startswith("cuda")
    if gpu:
        import torch  # here, because who asks for no GPU shall not wait for it

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            RESET.write_text("5")
    try:
        yield used
    finally:
        used.mb = round(torch.cuda.max_memory_allocated(device) / MB if gpu else _resident(), 1)


def _resident() -> float:
    with contextlib.suppress(OSError, StopIteration, ValueError):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / MB if sys.platform == "darwin" else most / 1024
