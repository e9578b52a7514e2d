"""A permutation that is computed where it is asked for, rather than stored.

A balanced Feistel network permutes the numbers of 2k bits, whatever its round function is:

    (L, R) <- (R, L xor F_i(R)),    i = 1 .. ROUNDS

and a number that leaves 0 .. n-1 is sent through again until it is back ("cycle walking"), 4 times at most on average.

References:
    How to construct pseudorandom permutations from pseudorandom functions (Luby and Rackoff, 1988)
    Ciphers with arbitrary finite domains (Black and Rogaway, 2002), section 3
    Fast splittable pseudorandom number generators (Steele, Lea and Flood, 2014), figure 15, for the mixing
"""

import numpy as np

ROUNDS = 6


def shuffled(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """What stands at `positions` of the permutation of 0..n-1 that belongs to a seed.

    Args:
        positions: any shape, integers in 0..n-1.
        n: how many there are, below 2^62.
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


GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """64 bits, each of which depends on all bits of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
