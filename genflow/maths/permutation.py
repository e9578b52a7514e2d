"""A pseudorandom permutation, and pseudorandom numbers, that are computed on demand instead of stored.

A balanced Feistel network permutes the numbers of 2k bits for any round function F_i:

    (L, R) <- (R, L xor F_i(R)),    i = 1 .. ROUNDS

A result outside 0 .. n-1 is permuted again until it is inside ("cycle walking"). On average this takes at most 4
passes.

References:
    How to construct pseudorandom permutations from pseudorandom functions (Luby and Rackoff, 1988)
    Ciphers with arbitrary finite domains (Black and Rogaway, 2002), section 3
    Fast splittable pseudorandom number generators (Steele, Lea and Flood, 2014), figure 15, for the mixing
"""

import numpy as np

ROUNDS = 6


def shuffled(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The elements at `positions` of a permutation of 0..n-1, which is a function of the seed.

    Args:
        positions: integers in 0..n-1, any shape.
        n: the number of elements, below 2^62.
        seed: below 2^64.

    Returns:
        int64, of the shape of `positions`.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _mix(np.uint64(seed) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * GOLDEN)
    out = np.asarray(positions).astype(np.uint64)
    outside = np.ones(out.shape, bool)
    while outside.any():
        x = out[outside]
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(n)
    return out.astype(np.int64)


def hashed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A pseudorandom uint64 for each number, which is a function of the number and the seed alone."""
    return _mix(_mix(np.uint64(seed) + np.asarray(numbers).astype(np.uint64) * GOLDEN) + GOLDEN)


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix 64-bit numbers, so that each bit of the result depends on all bits of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
