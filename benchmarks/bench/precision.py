"""The number format of all contestants: that of `train.precision=auto`, which is the faster one on this CPU."""

import torch

from genflow.training.precision import multiplies_bfloat16

HAS_BFLOAT16 = multiplies_bfloat16(torch.device("cpu"))
PRECISION = "bf16" if HAS_BFLOAT16 else "fp32"  # of a recipe
FORMAT = "bfloat16" if HAS_BFLOAT16 else "fp32"  # in text


def autocast() -> torch.autocast:
    """The context in which a contestant's net is evaluated."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BFLOAT16)
