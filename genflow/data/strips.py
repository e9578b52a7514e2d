"""Pictures that are not square, for random crops: a column of strips next to the column of centre crops.

A strip keeps the picture at the dataset's side, up to `LENGTH` times as long as wide; the ends of a longer picture are
cut off. Wide pictures are stored turned, so that all strips have one shape. The crop is chosen when a batch is read.
"""

import numpy as np

LENGTH = 2  # longest strip in sides: a panorama of 2:1 is kept whole


def to_strip(picture: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """A picture as a strip.

    Args:
        picture: (H, W, C); the short side is the dataset's side S, and the long side is at most `length`.
        length: length of the strip.

    Returns:
        The strip (length, S, C), filled up with zeros; and the extent: the picture's length, negative if it is wide.
    """
    height, width, channels = picture.shape
    upright = picture if height >= width else picture.transpose(1, 0, 2)
    strip = np.zeros((length, min(height, width), channels), picture.dtype)
    strip[: len(upright)] = upright
    return strip, len(upright) if height >= width else -len(upright)


def center_square(picture: np.ndarray, length: int) -> np.ndarray:
    """The central square of a picture, cut out of its strip; arguments as in `to_strip`."""
    strip, extent = to_strip(picture, length)
    return crop(strip[None], np.array([extent]), np.array([(abs(extent) - strip.shape[1]) // 2]))[0]


def crop(strips: np.ndarray, extents: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cut squares out of strips.

    Args:
        strips: (B, length, S, C).
        extents: (B,), from `to_strip`.
        starts: (B,), the first line of each square, 0 to |extent| - S.

    Returns:
        (B, S, S, C), upright.
    """
    side = strips.shape[2]
    lines = starts[:, None] + np.arange(side)
    squares = strips[np.arange(len(strips))[:, None], lines]
    wide = extents < 0
    squares[wide] = squares[wide].transpose(0, 2, 1, 3)
    return squares
