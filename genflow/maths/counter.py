"""A counter-based generator: each number is a function of a key and of its place, on every device the same.

A word of 64 bits is SplitMix64's mix of a counter. The second half of the key is added between the two products of the
mix, so sequences of different keys have nothing in common. The counter has three fields:

    row (24 bits) | draw (14 bits) | word (26 bits)

The mix consists of products, sums and shifts of 64-bit integers, which every device has. Philox, the usual choice,
needs the upper half of a product, which torch lacks: about 200 operations on a device in place of 12. On the CPU,
numpy's Philox takes twice as long.

A word gives two uniforms of 24 bits, or two normals by Box and Muller's transform. Uniforms are equal to the bit on all
devices. Normals differ by a few units in the last place, because logarithms and cosines do. numpy computes the numbers
on the CPU, in half the time of torch, and torch on other devices.

References:
    Fast Splittable Pseudorandom Number Generators (Steele, Lea, Flood, 2014), for SplitMix64
    Parallel Random Numbers: As Easy as 1, 2, 3 (Salmon et al., 2011), for counters in place of states
"""

import functools
import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

ROW_BITS, DRAW_BITS, WORD_BITS = 24, 14, 26
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SHIFTS = 30, 27, 31
ROW, DRAW = GAMMA << DRAW_BITS + WORD_BITS, GAMMA << WORD_BITS
UNIT, TURN = 2.0**-24, math.tau * 2.0**-24
FEW, SHARED = 2, 8  # draws of at most so many words are computed for so many draws at once
HOST_WORDS, DEVICE_WORDS = 1 << 15, 1 << 21  # at once: they stay in a cache

Words: TypeAlias = Any  # numpy's uint64 on the CPU, torch's int64 on other devices
Numbers: TypeAlias = Any  # float32 of numpy or torch


class Counter:
    """The numbers of one key.

    Args:
        key: of 128 bits.
    """

    def __init__(self, key: int) -> None:
        self._first, self._second = divmod(key, 1 << 64)
        self._few: tuple[Any, Any] = None, None  # numbers that later draws will take, and whose they are

    def draw(self, rows: range, draw: int, count: int, device: torch.device, *, normal: bool) -> Tensor:
        """The numbers (rows, count) of a draw.

        Args:
            rows: consecutive numbers of rows.
            draw: its number.
            count: numbers of a row.
            device: computes them.
            normal: standard normals, of which none is beyond 5.77; else multiples of 2^-24 in [0, 1).

        Raises:
            ValueError: the counter's fields have too few bits.
        """
        words = -(-count // 2)
        for value, bits in ((rows.stop, ROW_BITS), (draw, DRAW_BITS), (words, WORD_BITS)):
            if value >> bits:
                raise ValueError(f"row {rows.stop}, draw {draw}, {count} numbers a row: {value} has over {bits} bits")
        if words <= FEW:
            found = self._of_few(rows, draw // SHARED, device, normal)[:, :, draw % SHARED, :words]
            found = found.reshape(len(rows), 2 * words)[:, :count]
            return torch.from_numpy(found.copy()) if _on_host(device) else found.clone()
        out = _empty(len(rows), count, device)
        self._fill(out, rows, draw, device, normal)
        return torch.from_numpy(out) if _on_host(device) else out

    def _fill(self, out: Numbers, rows: range, draw: int, device: torch.device, normal: bool) -> None:
        words, most = -(-out.shape[1] // 2), HOST_WORDS if _on_host(device) else DEVICE_WORDS
        wide = min(words, most)
        tall = most // wide
        offsets = _multiples(wide, GAMMA, device)
        for word in range(0, words, wide):
            for row in range(0, len(rows), tall):
                part, at = out[row : row + tall], self._at(rows[row], draw, word)
                _convert(_words(at, self._second, len(part), offsets[: words - word]), part, word, normal)

    def _at(self, row: int, draw: int, word: int = 0) -> int:
        return self._first + GAMMA * ((row << DRAW_BITS | draw) << WORD_BITS | word)

    def _of_few(self, rows: range, group: int, device: torch.device, normal: bool) -> Numbers:
        """The first numbers of several draws: (rows, 2, SHARED, FEW)."""
        key = rows, group, device
        if self._few[0] != key:
            offsets = _multiples(SHARED, DRAW, device)[:, None] + _multiples(FEW, GAMMA, device)
            words = _words(self._at(rows.start, group * SHARED), self._second, len(rows), offsets.reshape(-1))
            made = [_empty(len(rows), 2 * SHARED * FEW, device) for _ in range(2)]
            for kind, out in enumerate(made):
                _convert(words.copy() if _on_host(device) else words, out, 0, bool(kind))
            self._few = key, [each.reshape(len(rows), 2, SHARED, FEW) for each in made]
        return self._few[1][normal]


def _on_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _empty(rows: int, count: int, device: torch.device) -> Numbers:
    return np.empty((rows, count), np.float32) if _on_host(device) else torch.empty((rows, count), device=device)


def _signed(value: int) -> int:
    """The signed integer with the same 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _multiples(count: int, of: int, device: torch.device) -> Words:
    if _on_host(device):
        return _host_multiples(of)[:count]
    return torch.arange(count, device=device).mul_(_signed(of))


@functools.cache
def _host_multiples(of: int) -> np.ndarray:
    return np.arange(HOST_WORDS, dtype=np.uint64) * np.uint64(of % (1 << 64))


def _words(at: int, second: int, rows: int, offsets: Words) -> Words:
    """The words (rows, words) of the counters `at + row * ROW + offsets`, which are multiplied by gamma already."""
    if isinstance(offsets, Tensor):
        starts = _multiples(rows, ROW, offsets.device).add_(_signed(at))
        return _mix_on_device(starts[:, None] + offsets, _signed(second))
    starts = np.arange(rows, dtype=np.uint64) * np.uint64(ROW % (1 << 64)) + np.uint64(at % (1 << 64))
    return _mix_on_host(starts[:, None] + offsets, np.uint64(second))


def _mix_on_host(z: np.ndarray, second: np.uint64) -> np.ndarray:
    shifted = np.empty_like(z)
    for shift, factor in zip(SHIFTS, (FIRST, SECOND, None), strict=True):
        np.right_shift(z, shift, out=shifted)
        z ^= shifted
        if factor:
            z *= np.uint64(factor)
        if factor == FIRST:
            z += second
    return z


def _mix_on_device(z: Tensor, second: int) -> Tensor:
    for shift, factor in zip(SHIFTS, (FIRST, SECOND, None), strict=True):
        z ^= (z >> shift) & ((1 << 64 - shift) - 1)  # a signed shift repeats the sign
        if factor:
            z *= _signed(factor)
        if factor == FIRST:
            z += second
    return z


def _convert(words: Words, out: Numbers, first: int, normal: bool) -> None:
    """Write the numbers of words (rows, n) into out (rows, count); the first word has the number `first` in its draw.

    The second number of a word is half a row behind its first, so that both are written without gaps.
    """
    half, count = -(-out.shape[1] // 2), words.shape[1]
    left, right = out[:, first : first + count], out[:, half + first : half + first + count]
    if isinstance(words, Tensor):
        (_normals_on_device if normal else _uniforms_on_device)(words, left, right)
    else:
        (_normals_on_host if normal else _uniforms_on_host)(words, left, right)


def _uniforms_on_host(words: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    halves = words.view(np.uint32)
    halves >>= np.uint32(8)
    whole, unit = halves.view(np.int32), np.float32(UNIT)
    np.multiply(whole[:, 1::2], unit, out=left, casting="unsafe", dtype=np.float32)
    np.multiply(whole[:, ::2][:, : right.shape[1]], unit, out=right, casting="unsafe", dtype=np.float32)


def _normals_on_host(words: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    halves = words.view(np.int32)
    halves >>= 8
    angle, radius = halves[:, ::2].astype(np.float32), halves[:, 1::2].astype(np.float32)
    radius *= np.float32(UNIT)
    radius += np.float32(0.5 + UNIT)
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(TURN)
    np.multiply(np.cos(angle), radius, out=left)
    np.sin(angle, out=angle)
    width = right.shape[1]
    np.multiply(angle[:, :width], radius[:, :width], out=right)


def _uniforms_on_device(words: Tensor, left: Tensor, right: Tensor) -> None:
    halves = (words.view(torch.int32) >> 8) & 0xFFFFFF
    torch.mul(halves[:, 1::2], UNIT, out=left)
    torch.mul(halves[:, ::2][:, : right.shape[1]], UNIT, out=right)


def _normals_on_device(words: Tensor, left: Tensor, right: Tensor) -> None:
    halves = words.view(torch.int32) >> 8
    radius = (halves[:, 1::2] * UNIT).add_(0.5 + UNIT).log_().mul_(-2).sqrt_()
    angle = halves[:, ::2] * TURN
    torch.mul(angle.cos(), radius, out=left)
    width = right.shape[1]
    torch.mul(angle.sin_()[:, :width], radius[:, :width], out=right)
