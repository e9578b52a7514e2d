"""A few numbers per picture, computed where a shard is written: enough to find copies and pictures without content.

The perceptual hash has one bit for each of the 63 lowest frequencies of a cosine transform: whether its coefficient is
above their median. Compression, resizing and a change of brightness keep most bits.

References:
    Implementation and Benchmarking of Perceptual Image Hash Functions (Zauner, 2010), section 3.2: the DCT-based hash
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

FREQUENCIES = 8  # per axis
PIECE = 256  # pictures converted to floats at a time


@dataclass(frozen=True)
class ImageStatistics:
    """Numbers about the N pictures of a shard; empty for points.

    Args:
        exact: (N,) uint64, a hash of the pixels: equal for identical pictures only.
        near: (N,) uint64, a perceptual hash: similar pictures differ in few bits.
        low, high: (N,) uint8, the smallest and the largest grey level.
    """

    exact: np.ndarray
    near: np.ndarray
    low: np.ndarray
    high: np.ndarray


def measure(values: np.ndarray) -> ImageStatistics:
    """The numbers about pictures (N, H, W, C) uint8; empty ones for points."""
    if values.ndim != 4:
        empty = np.zeros(0, np.uint64)
        return ImageStatistics(empty, empty, empty.astype(np.uint8), empty.astype(np.uint8))
    digests = [hashlib.blake2b(value.tobytes(), digest_size=8).digest() for value in values]
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return ImageStatistics(
        np.frombuffer(b"".join(digests), np.uint64),
        perceptual_hash(values),
        flat.min(1),
        flat.max(1),
    )


def perceptual_hash(values: np.ndarray) -> np.ndarray:
    """The perceptual hashes (N,) uint64 of pictures (N, H, W, C), H = W."""
    side = values.shape[1]
    count = min(FREQUENCIES, side)
    waves = np.cos(np.pi / side * np.arange(count)[:, None] * (np.arange(side) + 0.5)).astype(np.float32)
    hashes = np.zeros((len(values), 8), np.uint8)
    for start in range(0, len(values), PIECE):
        grey = values[start : start + PIECE].mean(3, dtype=np.float32)
        low = (waves @ grey @ waves.T).reshape(len(grey), -1)[:, 1:]  # without the mean
        bits = np.packbits(low > np.median(low, 1, keepdims=True), 1)
        hashes[start : start + PIECE, : bits.shape[1]] = bits
    return hashes.view(np.uint64)[:, 0]
