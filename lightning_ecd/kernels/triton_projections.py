"""Products with random bases in Triton, for CUDA: no row is ever in memory.

Words, signs and normals are those of `bases.c` and `draws.h`, at the same counters.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_ecd.kernels.triton_passes import TILE, _pair, _words

#: Tiles that one program of a projection adds up.
SPAN = 16
#: Bits of a word, and calls whose four words each are the signs of a tile.
BITS, CALLS = 32, 8


# -- normal rows ---------------------------------------------------------------------


@triton.jit
def _normals(tile, counter, low, high, QUARTER: tl.constexpr):
    """The four quarters of a tile of the row drawn at `counter`."""
    place = tl.cast(tile, tl.int64) * QUARTER + tl.arange(0, QUARTER)
    words = _words(place, counter, low.to(tl.uint32), high.to(tl.uint32))
    z0, z1 = _pair(words[0], words[1])
    z2, z3 = _pair(words[2], words[3])
    return z0, z1, z2, z3


@triton.jit
def _sums(g, n, start, z, QUARTER: tl.constexpr):
    """Sums of z g and of z² over the quarter of a tile that begins at `start`."""
    i = start + tl.arange(0, QUARTER)
    own = tl.load(g + i, i < n, 0.0)
    z = tl.where(i < n, z.to(own.dtype), 0.0)
    return tl.sum(z * own).to(tl.float64), tl.sum(z * z).to(tl.float64)


@triton.jit(do_not_specialize=["low", "high"])
def _project_normals(
    g,
    n,
    counters,
    rows,
    low,
    high,
    dots,
    squares,
    SPAN: tl.constexpr,
    QUARTER: tl.constexpr,
):
    """Set dots[span, row] and squares[span, row]."""
    row, span = tl.program_id(0), tl.program_id(1)
    counter = tl.load(counters + row)
    dot = tl.zeros((), tl.float64)
    square = tl.zeros((), tl.float64)
    end = tl.minimum((span + 1) * SPAN, tl.cdiv(n, 4 * QUARTER))
    for tile in range(span * SPAN, end):
        start = tl.cast(tile, tl.int64) * (4 * QUARTER)
        z0, z1, z2, z3 = _normals(tile, counter, low, high, QUARTER)
        dot0, square0 = _sums(g, n, start, z0, QUARTER)
        dot1, square1 = _sums(g, n, start + QUARTER, z1, QUARTER)
        dot2, square2 = _sums(g, n, start + 2 * QUARTER, z2, QUARTER)
        dot3, square3 = _sums(g, n, start + 3 * QUARTER, z3, QUARTER)
        dot += dot0 + dot1 + dot2 + dot3
        square += square0 + square1 + square2 + square3
    tl.store(dots + span * rows + row, dot)
    tl.store(squares + span * rows + row, square)


@triton.jit
def _put(out, n, start, sums, QUARTER: tl.constexpr):
    i = start + tl.arange(0, QUARTER)
    tl.store(out + i, sums, i < n)


@triton.jit(do_not_specialize=["low", "high"])
def _expand_normals(out, n, counters, rows, low, high, c, QUARTER: tl.constexpr):
    """Set one tile to the sum over rows, added up in registers."""
    tile = tl.program_id(0)
    kind = out.dtype.element_ty
    s0 = tl.zeros((QUARTER,), kind)
    s1 = tl.zeros((QUARTER,), kind)
    s2 = tl.zeros((QUARTER,), kind)
    s3 = tl.zeros((QUARTER,), kind)
    for row in range(rows):
        weight = tl.load(c + row).to(kind)
        z0, z1, z2, z3 = _normals(tile, tl.load(counters + row), low, high, QUARTER)
        s0 += weight * z0.to(kind)
        s1 += weight * z1.to(kind)
        s2 += weight * z2.to(kind)
        s3 += weight * z3.to(kind)
    start = tl.cast(tile, tl.int64) * (4 * QUARTER)
    _put(out, n, start, s0, QUARTER)
    _put(out, n, start + QUARTER, s1, QUARTER)
    _put(out, n, start + 2 * QUARTER, s2, QUARTER)
    _put(out, n, start + 3 * QUARTER, s3, QUARTER)


# -- rows of signs -------------------------------------------------------------------


@triton.jit
def _signs(tile, counter, low, high, CALLS: tl.constexpr):
    """The words of a tile: bit b of word l is the sign of its entry 32 b + l."""
    place = tl.cast(tile, tl.int64) * CALLS + tl.arange(0, CALLS)
    return _words(place, counter, low.to(tl.uint32), high.to(tl.uint32))


@triton.jit
def _places(tile, number: tl.constexpr, BITS: tl.constexpr, CALLS: tl.constexpr):
    """Places (8, 32) of the entries whose signs the words of a `number` are."""
    word = number * CALLS + tl.arange(0, CALLS)
    bit = tl.arange(0, BITS)
    start = tl.cast(tile, tl.int64) * (4 * CALLS * BITS)
    return start + BITS * bit[None, :] + word[:, None]


@triton.jit
def _turned(values, words, BITS: tl.constexpr):
    """Values (8, 32) with the signs of the bits of words (8,)."""
    bits = (words[:, None] >> tl.arange(0, BITS).to(tl.uint32)[None, :]) & 1
    return tl.where(bits != 0, -values, values)


@triton.jit
def _sum_turned(
    g, n, tile, number: tl.constexpr, words, BITS: tl.constexpr, CALLS: tl.constexpr
):
    i = _places(tile, number, BITS, CALLS)
    return tl.sum(_turned(tl.load(g + i, i < n, 0.0), words, BITS)).to(tl.float64)


@triton.jit(do_not_specialize=["low", "high"])
def _project_signs(
    g,
    n,
    counters,
    rows,
    low,
    high,
    dots,
    SPAN: tl.constexpr,
    BITS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """Set dots[span, row]."""
    row, span = tl.program_id(0), tl.program_id(1)
    counter = tl.load(counters + row)
    dot = tl.zeros((), tl.float64)
    end = tl.minimum((span + 1) * SPAN, tl.cdiv(n, 4 * CALLS * BITS))
    for tile in range(span * SPAN, end):
        a, b, c, d = _signs(tile, counter, low, high, CALLS)
        dot += _sum_turned(g, n, tile, 0, a, BITS, CALLS)
        dot += _sum_turned(g, n, tile, 1, b, BITS, CALLS)
        dot += _sum_turned(g, n, tile, 2, c, BITS, CALLS)
        dot += _sum_turned(g, n, tile, 3, d, BITS, CALLS)
    tl.store(dots + span * rows + row, dot)


@triton.jit
def _put_signed(
    out, n, tile, number: tl.constexpr, sums, BITS: tl.constexpr, CALLS: tl.constexpr
):
    i = _places(tile, number, BITS, CALLS)
    tl.store(out + i, sums, i < n)


@triton.jit(do_not_specialize=["low", "high"])
def _expand_signs(
    out,
    n,
    counters,
    rows,
    low,
    high,
    c,
    BITS: tl.constexpr,
    CALLS: tl.constexpr,
):
    """Set one tile to the sum over rows, added up in registers."""
    tile = tl.program_id(0)
    kind = out.dtype.element_ty
    s0 = tl.zeros((CALLS, BITS), kind)
    s1 = tl.zeros((CALLS, BITS), kind)
    s2 = tl.zeros((CALLS, BITS), kind)
    s3 = tl.zeros((CALLS, BITS), kind)
    for row in range(rows):
        weight = tl.zeros((CALLS, BITS), kind) + tl.load(c + row).to(kind)
        w0, w1, w2, w3 = _signs(tile, tl.load(counters + row), low, high, CALLS)
        s0 += _turned(weight, w0, BITS)
        s1 += _turned(weight, w1, BITS)
        s2 += _turned(weight, w2, BITS)
        s3 += _turned(weight, w3, BITS)
    _put_signed(out, n, tile, 0, s0, BITS, CALLS)
    _put_signed(out, n, tile, 1, s1, BITS, CALLS)
    _put_signed(out, n, tile, 2, s2, BITS, CALLS)
    _put_signed(out, n, tile, 3, s3, BITS, CALLS)


# -- from the host -------------------------------------------------------------------


class TritonProjections:
    """Project on rows e_i that are made on the way, and expand in them.

    `Products` on CUDA; with a range of counters nothing waits for the device. A program
    of a projection adds up `SPAN` tiles of one row; partial sums are float64.
    """

    def project(
        self, kind: str, g: Tensor, counters: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return e_i·g, shape (d,), and of normal rows |e_i|²; see `Products`."""
        spans = triton.cdiv(triton.cdiv(len(g), TILE), SPAN)
        dots = torch.empty(spans, len(counters), dtype=torch.float64, device=g.device)
        shared = g, len(g), _on(g, counters), len(counters), *_key(seed), dots
        grid = (len(counters), spans)
        if kind == "signs":
            _launch(_project_signs, grid, *shared, SPAN=SPAN, BITS=BITS, CALLS=CALLS)
            return dots.sum(0), None
        squares = torch.empty_like(dots)
        _launch(_project_normals, grid, *shared, squares, SPAN=SPAN, QUARTER=TILE // 4)
        return dots.sum(0), squares.sum(0)

    def expand(
        self, kind: str, c: Tensor, like: Tensor, counters: Sequence[int], seed: int
    ) -> Tensor:
        """Return Σ c_i e_i, shaped as `like` (n,); see `Products`."""
        out = torch.empty_like(like)
        grid, c = (triton.cdiv(len(out), TILE),), c.double().contiguous()
        shared = out, len(out), _on(out, counters), len(counters), *_key(seed), c
        if kind == "signs":
            _launch(_expand_signs, grid, *shared, BITS=BITS, CALLS=CALLS)
        else:
            _launch(_expand_normals, grid, *shared, QUARTER=TILE // 4)
        return out


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **sizes: int) -> None:
    if all(grid):
        with torch.cuda.device_of(arguments[0]):
            # multiply and add in one instruction; triton 3.9 wants it said
            kernel[grid](*arguments, **sizes, enable_fp_fusion=True)


def _on(like: Tensor, counters: Sequence[int]) -> Tensor:
    """Return counters on a device; a range is made there, without waiting."""
    if isinstance(counters, range) and counters.step == 1:
        return torch.arange(counters.start, counters.stop, device=like.device)
    return torch.tensor(counters, dtype=torch.int64).to(like.device)


def _key(seed: int) -> tuple[int, int]:
    return seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
