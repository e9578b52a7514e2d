"""`with pretended() as seen:` makes torch say that there is one CUDA device, and runs it on the CPU."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F

from genflow.maths import wide
from pretended_cuda import attention, device
from pretended_cuda.device import Seen


@contextlib.contextmanager
def pretended(*, multiplies_bfloat16: bool = True, has_float64: bool | None = None) -> Iterator[Seen]:
    """Within the block, everything on the device "cuda" is pretended; the value says what happened there.

    Args:
        multiplies_bfloat16: whether the device is fast in bfloat16.
        has_float64: whether it computes in float64, which Apple's GPUs do not; None: as `device.has_float64` says.
    """
    has_float64 = device.has_float64 if has_float64 is None else has_float64
    before, saved = device.seen, []

    def put(owner: Any, name: str, value: Any) -> None:
        saved.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    answers: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "reset_peak_memory_stats": None, "max_memory_allocated": 0,
        "is_current_stream_capturing": False, "is_bf16_supported": multiplies_bfloat16, "set_device": None,
        "get_device_name": "a pretended device",
    }  # fmt: skip
    for name, value in answers.items():
        put(torch.cuda, name, lambda *_, value=value, **__: value)
    put(torch.cuda, "synchronize", device.synchronize)
    put(device, "has_float64", has_float64)
    if not has_float64:
        put(wide, "has_float64", lambda device: False)
    put(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    put(F, "scaled_dot_product_attention", attention.attention)
    load_file = safetensors.torch.load_file

    def load(filename: str | Path, device: str | int = "cpu", **options: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device) for name, tensor in load_file(filename, device="cpu", **options).items()}

    for module in list(sys.modules.values()):
        if getattr(module, "load_file", None) is load_file:
            put(module, "load_file", load)
    lifts = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a plain parameter cannot become a subclass
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with device.Mode():
            yield device.begin()
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
        for owner, name, value in reversed(saved):
            setattr(owner, name, value)
        device.seen = before
