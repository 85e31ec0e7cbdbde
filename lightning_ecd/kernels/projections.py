"""Products with random bases in C (`bases.c`), called through ctypes."""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_ecd.kernels.compiled import TYPES, threads

#: Entries of a tile, the smallest share of a thread.
TILE = 1024
#: Entries of a basis that keep a thread busy for a millisecond or more.
_SHARE = 2**21

_P, _N, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
_ARGUMENTS = {
    "project_normals": [_P, _N, _P, _N, _U, _P, _P],
    "expand_normals": [_P, _N, _N, _P, _N, _U, _P],
    "project_signs": [_P, _N, _P, _N, _U, _P],
    "expand_signs": [_P, _N, _N, _P, _N, _U, _P],
    "flip": [_P, _P, _N, _U, _U],
    "hadamard": [_P, _N],
    "sketch": [_P, _N, _U, _N, _U, _P],
    "unsketch": [_P, _N, _U, _N, _U, _P],
}


class Projections:
    """Project on rows e_i that are made on the way, and expand in them.

    Row i is a function of (seed, counters[i]). Vectors have n entries, a basis d rows;
    coordinates are float64.

    Args:
        library: From `lightning_ecd.kernels.build.library`.
        dtype: Type of the vectors, one of `TYPES`.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype):
        self._dtype = dtype
        self._run: dict[str, Any] = {}
        for name, arguments in _ARGUMENTS.items():
            self._run[name] = library[f"{name}_{TYPES[dtype]}"]
            self._run[name].argtypes = arguments
            self._run[name].restype = None

    def project(
        self, kind: str, g: Tensor, counters: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return e_i·g, shape (d,), and of normal rows |e_i|².

        Args:
            kind: "normals" or "signs".
            g: Shape (n,).
            counters: Of the rows, d integers.
            seed: Of the basis.
        """
        self._check(g)
        rows, numbers = len(counters), torch.tensor(counters, dtype=torch.int64)
        dots = torch.empty(rows, dtype=torch.float64)
        squares = torch.empty_like(dots) if kind == "normals" else None
        run = self._run[f"project_{kind}"]

        def part(start: int, stop: int) -> None:
            results = [dots] if squares is None else [dots, squares]
            places = [_place(v, start) for v in (numbers, *results)]
            count = stop - start
            run(g.data_ptr(), len(g), places[0], count, seed, *places[1:])

        _share(part, rows, 1, len(g) * rows)
        return dots, squares

    def expand(
        self, kind: str, c: Tensor, like: Tensor, counters: Sequence[int], seed: int
    ) -> Tensor:
        """Return Σ c_i e_i, shaped as `like` (n,); the rest as in `project`."""
        out = torch.empty_like(like)
        self._check(out)
        c, n = c.double().contiguous(), len(out)
        run, numbers = self._run[f"expand_{kind}"], torch.tensor(counters)

        def part(start: int, stop: int) -> None:
            run(
                *(out.data_ptr(), start, stop, numbers.data_ptr()),
                *(len(counters), seed, c.data_ptr()),
            )

        _share(part, n, TILE, n * len(counters))
        return out

    def flip(self, v: Tensor, counter: int, seed: int, size: int = 0) -> Tensor:
        """Return ±v with the signs of one row, zeros behind it up to `size`."""
        self._check(v)
        out = v.new_empty(max(size, len(v)))
        out[len(v) :] = 0
        self._run["flip"](out.data_ptr(), v.data_ptr(), len(v), counter, seed)
        return out

    def hadamard(self, v: Tensor) -> None:
        """Set v ← H v, with a power of two entries."""
        self._check(v)
        self._run["hadamard"](v.data_ptr(), len(v))

    def sketch(self, g: Tensor, rows: int, counter: int, seed: int) -> Tensor:
        """Return the sums of ±g in `rows` bins, chosen at random for every entry."""
        self._check(g)
        bins = torch.empty(rows, dtype=torch.float64)
        run = self._run["sketch"]
        run(g.data_ptr(), len(g), counter, rows, seed, bins.data_ptr())
        return bins

    def unsketch(self, c: Tensor, like: Tensor, counter: int, seed: int) -> Tensor:
        """Return ±c of every entry's bin, shaped as `like`."""
        out = torch.empty_like(like)
        self._check(out)
        bins = c.double().contiguous()
        run = self._run["unsketch"]
        run(out.data_ptr(), len(out), counter, len(bins), seed, bins.data_ptr())
        return out

    def _check(self, v: Tensor) -> None:
        """Refuse what C would not notice."""
        if v.dtype != self._dtype or v.dim() != 1 or not v.is_contiguous():
            raise ValueError(
                f"a contiguous {self._dtype} vector is needed, got {tuple(v.shape)} of "
                f"{v.dtype}"
            )


def _place(v: Tensor, start: int) -> int:
    return v.data_ptr() + start * v.element_size()


def _share(
    part: Callable[[int, int], None], length: int, grain: int, work: int
) -> None:
    """Let threads do parts of a range, each a multiple of `grain` long."""
    count = min(torch.get_num_threads(), work // _SHARE, -(-length // grain))
    if count <= 1:
        part(0, length)
        return
    share = -(-length // count // grain) * grain
    cuts = [*range(0, length, share), length]
    others = threads(os.getpid()).map(part, cuts[1:-1], cuts[2:])
    part(cuts[0], cuts[1])
    list(others)
