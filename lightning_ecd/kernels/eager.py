"""The passes in plain torch: any device, any float type, one run or many as rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ecd import flat, randomness

#: A float on the host, a 0-d float64 tensor on an accelerator, a float64 column
#: (R, 1) where R runs are rows.
Number = float | Tensor


#: Weights of x', of x' - c and of the noise in a force.
Force = tuple[float, float, float]


class Exploration(NamedTuple):
    """Numbers of one exploring step, see `Body.explore`.

    Attributes:
        lr: Step size η'.
        momentum: m.
        fresh: Weight of the force in the momentum, 1 - dampening.
        nesterov: Whether the force looks ahead.
        alpha: Weight of the new point in the mean.
        inside: Decay λ, spring γ and noise that go through the momentum.
        outside: Those that act beside it.
    """

    lr: float
    momentum: float
    fresh: float
    nesterov: bool
    alpha: float
    inside: Force
    outside: Force


class Eager:
    """One torch operation after the other; see `Body` for what each pass does.

    Vectors may also be matrices (R, n) whose rows are independent runs; numbers then
    are columns (R, 1). A number on a device is never waited for.
    """

    def kick(
        self, q: Tensor, g: Tensor, x: Tensor, r: Number, k: Number, decay: Number
    ) -> Number:
        """Set q ← r q - k (g + decay x); return |q|²."""
        if isinstance(r, Tensor) or r != 1.0:
            q.mul_(r)
        add_scaled(q, -k, g)
        if _counts(decay):
            add_scaled(q, -k * decay, x)
        return self.square(q)

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
        """Kick, then set x ← x + d q; return |q|²."""
        square = self.kick(q, g, x, r, k, decay)
        self.drift(q, x, d)
        return square

    def drift(self, q: Tensor, x: Tensor, d: Number) -> None:
        """Set x ← x + d q."""
        add_scaled(x, d, q)

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
        """Set x ← x + d q, then q ← q + turn z; return |q|²."""
        self.drift(q, x, d)
        add_scaled(q, turn, self.normals(q, seed, step, offset))
        return self.square(q)

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
        """Let x take one step around c, and count it in the mean; see `Body`."""
        away = x - c if rule.inside[1] or rule.outside[1] else c
        noise = rule.inside[2] or rule.outside[2]
        z = self.normals(c, *draw) if noise else c

        def pushed(start: Tensor, force: Force) -> Tensor:
            for weight, vector in zip(force, (x, away, z), strict=True):
                if weight:
                    start = start.add(vector, alpha=weight)
            return start

        d = p = pushed(g, rule.inside)
        if rule.momentum:
            u.mul_(rule.momentum).add_(p, alpha=rule.fresh)
            d = p.add(u, alpha=rule.momentum) if rule.nesterov else u
        x.sub_(pushed(d, rule.outside), alpha=rule.lr)
        mean.mul_(1 - rule.alpha).add_(x, alpha=rule.alpha)

    def square(self, q: Tensor) -> Number:
        """Return |q|²."""
        return flat.square_norm(q) if q.dim() == 1 else _row_dots(q, q)

    def dot(self, q: Tensor, g: Tensor, x: Tensor, decay: Number) -> Number:
        """Return q·(g + decay x)."""
        inner = flat.dot if q.dim() == 1 else _row_dots
        total = inner(q, g)
        return total + decay * inner(q, x) if _counts(decay) else total

    def normals(
        self, like: Tensor, seed: int, step: int | Tensor, offset: int
    ) -> Tensor:
        """Return the draws of `drift_turn`, shaped as `like`."""
        return randomness.normals(like, seed, int(step), offset)


def _counts(factor: Number) -> bool:
    """Return whether a factor may differ from zero; a tensor is not asked."""
    return isinstance(factor, Tensor) or factor != 0


def add_scaled(y: Tensor, factor: Number, v: Tensor) -> None:
    """Add ``factor * v`` to `y` in place; a factor on the device is not waited for."""
    if isinstance(factor, Tensor):
        y.addcmul_(v.to(y.dtype), factor.to(y.dtype))
    else:
        y.add_(v, alpha=factor)


def _row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of every pair of rows, shape (R, 1), in float64."""
    return (a * b).sum(-1, keepdim=True, dtype=torch.float64)
