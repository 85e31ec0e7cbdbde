"""One-pass bodies of the energy-conserving updates, interchangeable.

An update of these optimizers is a few passes over three vectors: momentum `q`,
gradient `g`, parameters `x`. What bounds its time is memory: `Eager` reads and writes
every vector once per operation, the others once per pass.

==========  =========================================  ==============================
body        where                                      bytes per float32 parameter
==========  =========================================  ==============================
`Eager`     anywhere                                   BBI 28, ECDSep 28, more turned
`Compiled`  CPU, float32 and float64, a C compiler     BBI 20, ECDSep 24, turned 28
`Triton`    CUDA, float32 and float64, triton          the same
==========  =========================================  ==============================

Products with random bases are in C on the CPU (`Projections`) and in Triton on CUDA;
where there are none, `lightning_ecd.bases` has them in plain torch.

The environment variable ``LIGHTNING_ECD_KERNELS=eager`` chooses `Eager` everywhere.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from lightning_ecd import flat
from lightning_ecd.kernels.build import library
from lightning_ecd.kernels.compiled import TYPES, Compiled
from lightning_ecd.kernels.eager import Eager, Exploration, Number, add_scaled
from lightning_ecd.kernels.projections import Projections

__all__ = [
    "Body",
    "Compiled",
    "Eager",
    "Exploration",
    "Number",
    "Products",
    "Projections",
    "add_scaled",
    "body_of",
    "products_of",
    "projections_of",
]

_log = logging.getLogger(__name__)


class Body(Protocol):
    """Passes over contiguous vectors of one length, in place.

    Numbers are floats on the host and 0-d float64 tensors on an accelerator, where no
    pass waits for anything. Factors must be finite in the vectors' own type; whatever
    is not finite in the vectors stays so in the results.
    """

    def kick(
        self, q: Tensor, g: Tensor, x: Tensor, r: Number, k: Number, decay: Number
    ) -> Number:
        """Set q ← r q - k (g + decay x).

        Args:
            q: Momentum, shape (n,); written.
            g: Gradient, shape (n,).
            x: Parameters, shape (n,); not read when `decay` is 0.
            r: Rescale of the momentum.
            k: Strength of the kick.
            decay: L2 factor w_d.

        Returns:
            |q|² of the new momentum, accurate to 1e-6.
        """

    def kick_drift(
        self,
        q: Tensor,
        g: Tensor,
        x: Tensor,
        r: Number,
        k: Number,
        decay: Number,
        d: Number,
    ) -> Number:
        """`kick`, then set x ← x + d q with the new momentum; return its |q|²."""

    def drift(self, q: Tensor, x: Tensor, d: Number) -> None:
        """Set x ← x + d q."""

    def drift_turn(
        self,
        q: Tensor,
        x: Tensor,
        d: Number,
        turn: Number,
        seed: int,
        step: int | Tensor,
        offset: int,
    ) -> Number:
        """Set x ← x + d q, then q ← q + turn z with standard normal z.

        Args:
            q: Momentum, shape (n,); written.
            x: Parameters, shape (n,); written.
            d: Strength of the drift, by the old momentum.
            turn: Size of the noise.
            seed: Seed of the draws.
            step: The step that they belong to.
            offset: Index of ``q[0]`` in the whole vector: z is a function of
                (seed, step, offset + index).

        Returns:
            |q|² of the new momentum.
        """

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
        """Let x take one step around c, and count it in the mean.

        With F = λ x + γ (x - c) + s z, inside the momentum and outside of it: set
        p = g + F_in; u ← m u + fresh p; d = p + m u, or u without Nesterov, or p
        without momentum; x ← x - lr (d + F_out); mean ← (1 - alpha) mean + alpha x.

        Args:
            x: Exploring point, shape (n,); written.
            g: Gradient there, shape (n,).
            c: Center, shape (n,), in float32 where x has fewer bits, like u and mean.
            u: Momentum, shape (n,); written, but neither read nor written if m = 0.
            mean: Shape (n,); written.
            rule: The numbers.
            draw: Seed, step and offset of the normals z, as in `drift_turn`.
        """

    def square(self, q: Tensor) -> Number:
        """Return |q|², accurate to 1e-6."""

    def dot(self, q: Tensor, g: Tensor, x: Tensor, decay: Number) -> Number:
        """Return q·(g + decay x), accurate to 1e-6 |q| |g + decay x|."""

    def normals(
        self, like: Tensor, seed: int, step: int | Tensor, offset: int
    ) -> Tensor:
        """Return the very z that `drift_turn` uses, shaped and typed as `like`."""


class Products(Protocol):
    """Products with rows e_i that are made on the way: functions of (seed, counter)."""

    def project(
        self, kind: str, g: Tensor, counters: Sequence[int], seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return e_i·g, shape (d,), float64, and of normal rows |e_i|².

        Args:
            kind: "normals" or "signs".
            g: Shape (n,).
            counters: Of the rows, d integers.
            seed: Of the basis.
        """

    def expand(
        self, kind: str, c: Tensor, like: Tensor, counters: Sequence[int], seed: int
    ) -> Tensor:
        """Return Σ c_i e_i, shaped as `like` (n,); the rest as in `project`."""


def body_of(x: Tensor) -> Body:
    """Return the fastest body that works for vectors like `x`.

    A compiler that is missing or fails costs speed, nothing else: `Eager` then does
    the work, and one debug record of the logger ``lightning_ecd.kernels`` says why.

    Args:
        x: The parameters, shape (n,).

    Raises:
        ValueError: If ``LIGHTNING_ECD_KERNELS`` is set to anything but "eager".
    """
    if _wants_eager(x):
        return Eager()
    if x.device.type == "cuda":
        return _triton() or Eager()
    built = _built_for(x)
    return _compiled(built, x.dtype) if built else Eager()


def products_of(x: Tensor) -> Products | None:
    """Return fast products with independent rows for vectors like `x`, if any.

    Args:
        x: The parameters, shape (n,).

    Raises:
        ValueError: If ``LIGHTNING_ECD_KERNELS`` is set to anything but "eager".
    """
    if x.device.type == "cuda" and not _wants_eager(x):
        return _triton_products()
    return projections_of(x)


def projections_of(x: Tensor) -> Projections | None:
    """Return products, transforms and sketches in C for vectors like `x`, if any.

    Args:
        x: The parameters, shape (n,).

    Raises:
        ValueError: If ``LIGHTNING_ECD_KERNELS`` is set to anything but "eager".
    """
    built = None if _wants_eager(x) else _built_for(x)
    return _projections(built, x.dtype) if built else None


def _wants_eager(x: Tensor) -> bool:
    """Return whether plain torch is chosen, or all there is for the type."""
    chosen = os.environ.get("LIGHTNING_ECD_KERNELS", "")
    if chosen not in ("", "eager"):
        raise ValueError(
            f"LIGHTNING_ECD_KERNELS must be 'eager' or not set, got {chosen!r}"
        )
    return chosen == "eager" or x.dtype not in TYPES


def _built_for(x: Tensor) -> ctypes.CDLL | None:
    """Return the functions in C if they work on a vector."""
    # tests declare that no vector lies on the host
    return library() if x.device.type == "cpu" and flat.on_host(x) else None


_compiled = lru_cache(maxsize=8)(Compiled)
_projections = lru_cache(maxsize=8)(Projections)


@lru_cache(maxsize=1)
def _triton() -> Body | None:
    """Return the Triton body if it works here, tried out on a few entries."""
    try:
        from lightning_ecd.kernels.triton_passes import Triton

        body, few = Triton(), torch.ones(3, 16, device="cuda")
        body.kick_drift(few[0], few[1], few[2], 1.0, 0.1, 0.0, 0.1)
        body.drift_turn(few[0], few[2], 0.1, 0.1, 0, 0, 0)
    except Exception as error:  # triton raises what it likes
        _log.debug("no Triton kernels, plain torch does the work: %s", error)
        return None
    return body


@lru_cache(maxsize=1)
def _triton_products() -> Products | None:
    """Return the products in Triton if they work here, tried out on a few entries."""
    try:
        from lightning_ecd.kernels.triton_projections import TritonProjections

        products, few = TritonProjections(), torch.ones(16, device="cuda")
        for kind in ("normals", "signs"):
            c, _ = products.project(kind, few, range(2), 0)
            products.expand(kind, c, few, range(2), 0)
    except Exception as error:  # triton raises what it likes
        _log.debug("no products in Triton, plain torch does the work: %s", error)
        return None
    return products
