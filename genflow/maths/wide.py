"""Double precision where the device has it: Apple's GPUs compute in float32 at most."""

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type != "mps"


def wide_type(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device."""
    return torch.float64 if has_float64(device) else torch.float32


def wide(x: Tensor) -> Tensor:
    """A tensor in the widest floating-point type of its device."""
    return x.to(wide_type(x.device))
