"""The passes in C (`passes.c`), called through ctypes."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_ecd.kernels.eager import Exploration, Number

#: Types of the vectors and their names in the library.
TYPES = {torch.float32: "float", torch.float64: "double"}
#: Entries that keep a thread busy for a millisecond: fewer are not worth handing over.
_SHARE = 2**21
#: Normals are made in tiles of so many; a cut within one makes it twice.
_TILE = 1024

_P, _N, _D, _U = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_uint64
#: What every pass takes; each returns a number.
_ARGUMENTS = {
    "kick": [_P, _P, _P, _N, _D, _D, _D],
    "kick_drift": [_P, _P, _P, _N, _D, _D, _D, _D],
    "drift": [_P, _P, _N, _D],
    "drift_turn": [_P, _P, _N, _D, _D, _U, _U, _N],
    "normals": [_P, _N, _U, _U, _N],
    "explore": [*5 * [_P], _N, *12 * [_D], _U, _U, _N],
    "square": [_P, _N],
    "dot": [_P, _P, _P, _N, _D],
}


class Compiled:
    """One pass over memory for each part of an update, on the CPU; see `Body`.

    Long vectors are shared among ``torch.get_num_threads()`` threads. Normals are
    counter-based and made in registers: they have the law of torch's, not the bits.

    Args:
        library: The passes, from `lightning_ecd.kernels.build.library`.
        dtype: Type of all vectors, one of `TYPES`.
    """

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype):
        self._dtype = dtype
        self._passes: dict[str, Any] = {}
        for name, arguments in _ARGUMENTS.items():
            self._passes[name] = library[f"{name}_{TYPES[dtype]}"]
            self._passes[name].argtypes = arguments
            self._passes[name].restype = _D

    def kick(
        self, q: Tensor, g: Tensor, x: Tensor, r: Number, k: Number, decay: Number
    ) -> float:
        """Set q ← r q - k (g + decay x); return |q|²."""
        return self._run("kick", (q, g, x), r, k, decay)

    def kick_drift(
        self,
        q: Tensor,
        g: Tensor,
        x: Tensor,
        r: Number,
        k: Number,
        decay: Number,
        d: Number,
    ) -> float:
        """Kick, then set x ← x + d q; return |q|²."""
        return self._run("kick_drift", (q, g, x), r, k, decay, d)

    def drift(self, q: Tensor, x: Tensor, d: Number) -> None:
        """Set x ← x + d q."""
        self._run("drift", (q, x), d)

    def drift_turn(
        self,
        q: Tensor,
        x: Tensor,
        d: Number,
        turn: Number,
        seed: int,
        step: int | Tensor,
        offset: int,
    ) -> float:
        """Set x ← x + d q, then q ← q + turn z; return |q|²."""
        return self._run("drift_turn", (q, x), d, turn, seed, int(step), offset=offset)

    def explore(
        self,
        x: Tensor,
        g: Tensor,
        c: Tensor,
        u: Tensor,
        mean: Tensor,
        rule: Exploration,
        draw: tuple[int, int, int],
    ) -> None:
        """Let x take one step around c, and count it in the mean."""
        seed, step, offset = draw
        lr, momentum, fresh, nesterov, alpha, inside, outside = rule
        # weights of p and u in the direction
        p, ahead = (1.0, momentum) if nesterov or not momentum else (0.0, 1.0)
        numbers = (lr, momentum, fresh, p, ahead, alpha, *inside, *outside)
        vectors = (x, g, c, u if momentum else mean, mean)
        self._run("explore", vectors, *numbers, seed, step, offset=offset)

    def square(self, q: Tensor) -> float:
        """Return |q|²."""
        return self._run("square", (q,))

    def dot(self, q: Tensor, g: Tensor, x: Tensor, decay: Number) -> float:
        """Return q·(g + decay x)."""
        return self._run("dot", (q, g, x), decay)

    def normals(
        self, like: Tensor, seed: int, step: int | Tensor, offset: int
    ) -> Tensor:
        """Return the draws of `drift_turn`, shaped as `like`."""
        z = torch.empty_like(like, memory_format=torch.contiguous_format)
        self._run("normals", (z,), seed, int(step), offset=offset)
        return z

    def _run(
        self,
        name: str,
        vectors: tuple[Tensor, ...],
        *numbers: Number,
        offset: int | None = None,
    ) -> float:
        """Call a pass, on several threads where the vectors are long."""
        n = vectors[0].numel()
        for v in vectors:  # C would not notice
            if v.dtype != self._dtype or v.numel() != n or not v.is_contiguous():
                raise ValueError(
                    f"{name} takes contiguous {self._dtype} vectors of one length, "
                    f"got {[(tuple(v.shape), v.dtype) for v in vectors]}"
                )
        run, places = self._passes[name], [v.data_ptr() for v in vectors]
        if n < 2 * _SHARE or torch.get_num_threads() == 1:
            last = () if offset is None else (offset,)
            return run(*places, n, *numbers, *last)
        size = vectors[0].element_size()

        def part(start: int, stop: int) -> float:
            last = () if offset is None else (offset + start,)
            shifted = (place + start * size for place in places)
            return run(*shifted, stop - start, *numbers, *last)

        count = min(torch.get_num_threads(), n // _SHARE)
        share = -(-n // count // 1024) * 1024
        cuts = [*range(0, n, share), n]
        others = threads(os.getpid()).map(part, cuts[1:-1], cuts[2:])
        return part(0, cuts[1]) + sum(others)


@lru_cache(maxsize=1)
def threads(process: int) -> ThreadPoolExecutor:
    """Return threads of this process; a fork has none of its parent's."""
    return ThreadPoolExecutor(thread_name_prefix="passes")
