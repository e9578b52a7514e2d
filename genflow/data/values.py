"""Records, such as grey levels in a shard, as the numbers that nets see, and back."""

from typing import TYPE_CHECKING

import numpy as np

from genflow.specs import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


def record_format(facts: DataSpec) -> tuple[tuple[int, int, int], type[np.generic]]:
    """Shape and type of a record: (H, W, C) uint8 grey levels or float16 latents, or (1, 1, 2) float32 points."""
    if facts.is_points:
        return (1, 1, 2), np.float32
    C, H, W = facts.shape
    return (H, W, C), np.float16 if facts.is_latents else np.uint8


def to_x(values: "np.ndarray | Tensor", facts: DataSpec) -> "Tensor":
    """Convert records (B, H, W, C) to the model's input x (B, C, H, W) float32.

    x = (2k + 1)/K - 1 for grey levels k in 0..K-1 (bin centres); x = point / scale for points; latents as they are.
    """
    import torch  # not at the top: workers that write shards do not need it, and it costs 1.5 s and 200 MB each

    if isinstance(values, np.ndarray):  # a view of the file is read-only, and torch warns about that
        values = np.require(values, requirements=["C", "W"])
    tensor = torch.as_tensor(values)
    # Torch's own order of memory, in the strides as well: kernels take a picture of one channel with the strides of
    # channels last for such a picture, and are slower.
    x = tensor.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if facts.levels is None:
        return x.div_(facts.scale)
    return x.mul_(2 / facts.levels).add_(1 / facts.levels - 1)


def from_x(x: "Tensor", facts: DataSpec) -> np.ndarray:
    """Round x to the nearest records: (B, H, W, C) uint8 grey levels; float32 points or latents are not rounded."""
    x = x.detach().float().cpu().permute(0, 2, 3, 1)
    if facts.levels is None:
        return (x * facts.scale).numpy()
    levels = ((x + 1) * (facts.levels / 2) - 0.5).round().clamp(0, facts.levels - 1)
    return levels.byte().numpy()


def to_display(images: np.ndarray, facts: DataSpec) -> np.ndarray:
    """Scale grey levels 0..K-1 to 0..255, for files and screens: (N, H, W, C) uint8."""
    levels = facts.levels or 256
    if levels == 256:
        return images.astype(np.uint8, copy=False)
    return np.rint(images.astype(np.float32) * (255 / (levels - 1))).astype(np.uint8)
