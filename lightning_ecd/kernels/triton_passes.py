"""The passes in Triton, for CUDA.

Every number is read from device memory, so that nothing waits and a CUDA graph that
holds a pass follows its numbers. The normals are those of `passes.c`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_ecd.kernels.eager import Eager, Number

#: Entries per program; normals are made in tiles of as many (see `passes.c`).
TILE = 1024


@triton.jit
def _kick(q, squares, n, g, x, r, k, decay, d, TILE: tl.constexpr):
    """Kick, and drift if there is a `d`; what is None costs nothing."""
    tile = tl.program_id(0)
    i = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = i < n
    p = tl.load(q + i, inside, 0.0)
    force = tl.load(g + i, inside, 0.0)
    if decay is not None:
        force += tl.load(decay).to(p.dtype) * tl.load(x + i, inside, 0.0)
    if r is not None:
        p *= tl.load(r).to(p.dtype)
    p -= tl.load(k).to(p.dtype) * force
    tl.store(q + i, p, inside)
    if d is not None:
        place = tl.load(x + i, inside, 0.0)
        tl.store(x + i, place + tl.load(d).to(p.dtype) * p, inside)
    tl.store(squares + tile, tl.sum(p * p).to(tl.float64))


@triton.jit
def _mixed(a, b, bits: tl.constexpr):
    a += b
    return a, ((b << bits) | (b >> (32 - bits))) ^ a


@triton.jit
def _even(a, b, c, d):
    a, b = _mixed(a, b, 10)
    c, d = _mixed(c, d, 26)
    a, d = _mixed(a, d, 11)
    c, b = _mixed(c, b, 21)
    a, b = _mixed(a, b, 13)
    c, d = _mixed(c, d, 27)
    a, d = _mixed(a, d, 23)
    c, b = _mixed(c, b, 5)
    return a, b, c, d


@triton.jit
def _odd(a, b, c, d):
    a, b = _mixed(a, b, 6)
    c, d = _mixed(c, d, 20)
    a, d = _mixed(a, d, 17)
    c, b = _mixed(c, b, 11)
    a, b = _mixed(a, b, 25)
    c, d = _mixed(c, d, 10)
    a, d = _mixed(a, d, 18)
    c, b = _mixed(c, b, 20)
    return a, b, c, d


@triton.jit
def _words(place, step, k0, k1):
    """Threefry-4x32-20 with key (k0, k1, 0, 0) and counter (place, step)."""
    k4 = k0 ^ k1 ^ 0x1BD11BDA
    a, b = place.to(tl.uint32) + k0, (place >> 32).to(tl.uint32) + k1
    c = tl.zeros_like(a) + step.to(tl.uint32)
    d = tl.zeros_like(a) + (step >> 32).to(tl.uint32)
    a, b, c, d = _even(a, b, c, d)
    a, d = a + k1, d + k4 + 1
    a, b, c, d = _odd(a, b, c, d)
    c, d = c + k4, d + k0 + 2
    a, b, c, d = _even(a, b, c, d)
    b, c, d = b + k4, c + k0, d + k1 + 3
    a, b, c, d = _odd(a, b, c, d)
    a, b, c, d = a + k4, b + k0, c + k1, d + 4
    a, b, c, d = _even(a, b, c, d)
    return a + k0, b + k1, c, d + 5


@triton.jit
def _quarter_sine(v):
    t = v * v
    p = 1.516717e-4 * t - 4.6741436e-3
    p = p * t + 7.968992e-2
    p = p * t - 6.459638e-1
    p = p * t + 1.5707964
    return p * v


@triton.jit
def _signed(size, bit):
    return (size.to(tl.uint32, bitcast=True) ^ bit).to(tl.float32, bitcast=True)


@triton.jit
def _pair(word, angle):
    """Two normals of two words; `passes.c` explains the constants."""
    u = (word >> 1).to(tl.int32).to(tl.float32) + 0.5
    above = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    f = ((above & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = 0.08533396 * f - 0.14269382
    p = p * f + 0.1497743
    p = p * f - 0.16577978
    p = p * f + 0.1995593
    p = p * f - 0.25001353
    p = p * f + 0.33334193
    p = p * f - 0.5
    p = p * f + 1.0
    e = (31 - (above >> 23)).to(tl.float32)
    r = tl.sqrt(e * 1.3862944 - 2.0 * f * p)
    v = (angle >> 2).to(tl.int32).to(tl.float32) * 9.313225746154785e-10
    a = _signed(r * _quarter_sine(1.0 - v), angle << 31)
    b = _signed(r * _quarter_sine(v), (angle & 2) << 30)
    return a, b


@triton.jit
def _moved(q, x, d, turn, z, i, n):
    """Drift and turn the entries `i`; return their squares."""
    inside = (i >= 0) & (i < n)
    p = tl.load(q + i, inside, 0.0)
    if d is not None:
        place = tl.load(x + i, inside, 0.0)
        tl.store(x + i, place + tl.load(d).to(p.dtype) * p, inside)
    p += tl.load(turn).to(p.dtype) * z.to(p.dtype)
    tl.store(q + i, p, inside)
    return tl.where(inside, p * p, 0.0)


@triton.jit(do_not_specialize=["low", "high", "offset"])
def _drift_turn(q, squares, n, x, d, turn, step, low, high, offset, TILE: tl.constexpr):
    """Drift if there is a `d`, and turn by the noise of (low, high), step, place."""
    QUARTER: tl.constexpr = TILE // 4
    tile = tl.program_id(0)
    counter = tl.arange(0, QUARTER)
    place = (offset // TILE + tile).to(tl.int64) * QUARTER + counter
    i = tile.to(tl.int64) * TILE - offset % TILE + counter
    words = _words(place, tl.load(step), low.to(tl.uint32), high.to(tl.uint32))
    z0, z1 = _pair(words[0], words[1])
    z2, z3 = _pair(words[2], words[3])
    square = _moved(q, x, d, turn, z0, i, n)
    square += _moved(q, x, d, turn, z1, i + QUARTER, n)
    square += _moved(q, x, d, turn, z2, i + 2 * QUARTER, n)
    square += _moved(q, x, d, turn, z3, i + 3 * QUARTER, n)
    tl.store(squares + tile, tl.sum(square).to(tl.float64))


class Triton(Eager):
    """One pass over memory for each part of an update, on CUDA; see `Body`.

    Sums run over `TILE` entries in the vectors' own type and over tiles in float64.
    What is a single pass in torch already is inherited.
    """

    def kick(
        self, q: Tensor, g: Tensor, x: Tensor, r: Number, k: Number, decay: Number
    ) -> Tensor:
        """Set q ← r q - k (g + decay x); return |q|²."""
        return self.kick_drift(q, g, x, r, k, decay, 0.0)

    def kick_drift(
        self,
        q: Tensor,
        g: Tensor,
        x: Tensor,
        r: Number,
        k: Number,
        decay: Number,
        d: Number,
    ) -> Tensor:
        """Kick, then set x ← x + d q; return |q|²."""
        numbers = _number(r, q, 1.0), _on(q, k), _number(decay, q), _number(d, q)
        return _sum_of(_kick, q, triton.cdiv(q.numel(), TILE), g, x, *numbers)

    def drift_turn(
        self,
        q: Tensor,
        x: Tensor,
        d: Number,
        turn: Number,
        seed: int,
        step: int | Tensor,
        offset: int,
    ) -> Tensor:
        """Set x ← x + d q, then q ← q + turn z; return |q|²."""
        tiles = triton.cdiv(offset % TILE + q.numel(), TILE) if q.numel() else 0
        when = _on(q, step, torch.int64)
        key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
        numbers = _number(d, q), _on(q, turn), when, *key, offset
        return _sum_of(_drift_turn, q, tiles, x, *numbers)

    def normals(
        self, like: Tensor, seed: int, step: int | Tensor, offset: int
    ) -> Tensor:
        """Return the draws of `drift_turn`, shaped as `like`."""
        z = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self.drift_turn(z, z, 0.0, 1.0, seed, step, offset)
        return z


def _sum_of(kernel: Any, q: Tensor, tiles: int, *arguments: Any) -> Tensor:
    """Launch a kernel; return the sum of what its programs put into `squares`."""
    squares = torch.empty(tiles, dtype=torch.float64, device=q.device)
    if tiles:
        with torch.cuda.device_of(q):
            # multiply and add in one instruction; triton 3.9 wants it said
            kernel[(tiles,)](
                q, squares, q.numel(), *arguments, TILE=TILE, enable_fp_fusion=True
            )
    return squares.sum()


def _number(number: Number, q: Tensor, idle: float = 0.0) -> Tensor | None:
    """Return a factor where kernels read it; None if it is known to change nothing."""
    return (
        None if isinstance(number, float | int) and number == idle else _on(q, number)
    )


def _on(q: Tensor, number: Number, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a number on the device of `q`; filling, unlike copying, never waits."""
    if isinstance(number, Tensor):
        return number.to(dtype)
    return torch.full((), number, dtype=dtype, device=q.device)
