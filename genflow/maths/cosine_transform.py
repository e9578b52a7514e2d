"""The orthonormal discrete cosine transform (DCT-II), as a matrix."""

import math

import numpy as np
from numpy.typing import NDArray


def cosine_transform(side: int) -> NDArray[np.float64]:
    """The matrix (side, side) from values to coefficients, lowest frequency first; its transpose is the inverse.

    In numpy, because an outline of a net, on torch's meta device, has no values.
    """
    k, n = np.arange(side)[:, None], np.arange(side)[None]
    matrix = np.cos(math.pi * (n + 0.5) * k / side) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix
