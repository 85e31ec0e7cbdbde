"""A particle: parameters and momentum that move together under one energy."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_ecd.flat import square_norm
from lightning_ecd.kernels import Body
from lightning_ecd.optimizers.base import Number
from lightning_ecd.optimizers.scalars import where

#: A squared norm of q outside these bounds is folded into the scale.
_SMALL, _LARGE = 2.0**-60, 2.0**60

#: Start and stop within the flat vectors.
Span = tuple[int, int]


class Particle:
    """Momentum ``p = scale * q`` and position ``x`` of some groups of parameters.

    On the host the scale is a number that carries every rescale of the momentum: it
    saves a pass over memory and lets float32 momenta reach any size. Elsewhere, and
    where many runs are rows, it is 1 and q is p.

    Args:
        groups: The parameter group of every part.
        spans: Where every part lies in the vectors.
        x: Parameters, shape (n,).
        g: Gradients, shape (n,).
        q: Momentum up to its scale, shape (n,).
        body: What passes over the vectors.
        host: Whether numbers are floats.
        rows: Runs that are the rows of one parameter, whose columns are contiguous;
            0: the vectors are one run.

    Attributes:
        decay_factor: Times the weight decay is in the force.
        own: The numbers of this particle: ``p2`` = |p|² and, on the host, ``scale``.
        n: Number of parameters of a run.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        spans: Sequence[Span],
        x: Tensor,
        g: Tensor,
        q: Tensor,
        body: Body,
        host: bool,
        rows: int = 0,
    ):
        def cut(vector: Tensor, span: Span) -> Tensor:
            part = vector[slice(*span)]
            return part.view(-1, rows).T if rows else part

        self.groups, self.body, self.host = groups, body, host
        self.own: dict[str, Any] = groups[0].setdefault("system", {})
        self.decay_factor = 1.0
        self.parts = [tuple(cut(v, span) for v in (q, g, x)) for span in spans]
        whole = spans[0][0], spans[-1][1]
        self.q, self.x = cut(q, whole), cut(x, whole)
        self.n = self.q.shape[-1]
        self.square: Number = 0.0  # |q|² after the last kick

    def launch(self, p2: Number, direction: Tensor | None = None) -> None:
        """Set |p|², keeping the direction of `q` or taking a new one."""
        if direction is not None:
            self.q.copy_(direction)
        square = self.body.square(self.q)
        scale = (p2 / where(square > 0, square, 1.0)) ** 0.5
        self.own["p2"] = p2
        if not self.host:
            self.q.mul_(scale)
            return
        if scale == 0:
            self.q.zero_()
        self.own["scale"] = scale or 1.0

    def kick(
        self,
        steps: Sequence[Number],
        k: Number,
        r: Number = 1.0,
        stretch: Sequence[Number] | None = None,
        d: Number | None = None,
    ) -> Number:
        """Kick: p ← r p - Δt k (∇F + w_d θ); with `d` also θ ← θ + Δt d p.

        Args:
            steps: Δt of every part.
            k: Strength of the kick.
            r: Rescale of the momentum.
            stretch: Further factors of the momentum, one per part.
            d: Strength of a drift that needs nothing that the kick changes.

        Returns:
            |p|².
        """
        if stretch is not None and len(stretch) == 1:
            r, stretch = r * stretch[0], None
        scale = 1.0
        if self.host:
            scale = self._scaled_by(r)
            r = 1.0
            if max(k, -k) > _LARGE * scale:  # float32 may not hold their ratio
                self._kick_in_double(steps, k, stretch)
                scale, k, stretch = self.own["scale"], 0.0, None
        square: Number = 0.0
        for i, (q, g, x) in enumerate(self.parts):
            own = r if stretch is None else r * stretch[i]
            factor = steps[i] * k / scale
            decay = self.decay_factor * self.groups[i]["weight_decay"]
            if d is None:
                part = self.body.kick(q, g, x, own, factor, decay)
            else:
                move = steps[i] * d * scale
                part = self.body.kick_drift(q, g, x, own, factor, decay, move)
            square = part if i == 0 else square + part
        self.square = square
        self.own["p2"] = scale * scale * square
        if self.host:
            self._settle()
        return self.own["p2"]

    def kick_across(
        self,
        steps: Sequence[Number],
        k: Number,
        r: Number,
        along: Sequence[Number],
        d: Number | None = None,
    ) -> Number:
        """Kick a unit momentum: u ← r u - Δt k (1 - u uᵀ) (∇F + w_d θ); see `kick`.

        Args:
            steps: Δt of every part.
            k: Strength of the kick.
            r: Rescale of the momentum.
            along: Returned by `along`.
            d: As of `kick`.
        """
        # u - c (1 - u uᵀ) G = (1 + c u·G) u - c G
        pairs = zip(steps, along, strict=True)
        stretch = [1 + step * k * dot for step, dot in pairs]
        return self.kick(steps, k, r, stretch, d)

    def drift(self, steps: Sequence[Number], d: Number) -> None:
        """Drift: θ ← θ + Δt d p."""
        for step, (q, _, x) in zip(steps, self.parts, strict=True):
            self.body.drift(q, x, step * d * self.scale)

    def drift_turn(
        self, steps: Sequence[Number], d: Number, nu: Number, seed: int, step: int
    ) -> None:
        """Drift, then p ← |p| (p/|p| + ν z)/|p/|p| + ν z|, z normal."""
        move: Number = 0.0
        if len(steps) == 1:
            move = steps[0] * d * self.scale
        else:  # the draws belong to the whole vector, however it is divided
            self.drift(steps, d)
        turn, offset = nu * self.square**0.5, int(self.q.storage_offset())
        square = self.body.drift_turn(self.q, self.x, move, turn, seed, step, offset)
        back = (self.own["p2"] / where(square > 0, square, 1.0)) ** 0.5
        if not self.host:
            self.q.mul_(back)
        elif square > 0:
            self.own["scale"], self.square = back, square
            self._settle()

    def fold(self) -> Tensor:
        """Multiply the scale into `q`, which then is p."""
        if self.host:
            self.q.mul_(self.own["scale"])
            self.own["scale"] = 1.0
        return self.q

    @property
    def scale(self) -> Number:
        """The factor between `q` and p."""
        return self.own["scale"] if self.host else 1.0

    def along(self, r: Number, apart: bool = False) -> list[Number]:
        """Return r p·(∇F + w_d θ), one number per part: that of all, or `apart`."""
        dots = [
            r * (self.scale * self.body.dot(q, g, x, group["weight_decay"]))
            for group, (q, g, x) in zip(self.groups, self.parts, strict=True)
        ]
        return dots if apart else [sum(dots)] * len(dots)

    def decay(self) -> Number:
        """Return ½ Σ w_d |θ|² over the parts."""
        total: Number = 0.0
        for group, (_, _, x) in zip(self.groups, self.parts, strict=True):
            if group["weight_decay"]:
                total = total + 0.5 * group["weight_decay"] * self.body.square(x)
        return total

    def _scaled_by(self, r: Number) -> float:
        """Multiply the momentum by `r`; return the scale, which stays positive."""
        scale = float(self.own["scale"] * r)
        if scale <= 0:  # a strong kick turns u around
            self.q.mul_(-1.0 if scale < 0 else 0.0)
            scale = -scale or 1.0
        self.own["scale"] = scale
        return scale

    def _kick_in_double(
        self, steps: Sequence[Number], k: Number, stretch: Sequence[Number] | None
    ) -> None:
        kicked = [q.double() for q, _, _ in self.parts]
        for i, (p, (_, g, x)) in enumerate(zip(kicked, self.parts, strict=True)):
            force = g + self.decay_factor * self.groups[i]["weight_decay"] * x
            p.mul_(1.0 if stretch is None else stretch[i])
            p.sub_(force, alpha=steps[i] * k / self.own["scale"])
        size = sum(square_norm(p) for p in kicked) ** 0.5 or 1.0
        for (q, _, _), p in zip(self.parts, kicked, strict=True):
            q.copy_(p / size)
        self.own["scale"] *= size

    def _settle(self) -> None:
        """Keep the squared norm of q where float32 holds it."""
        square = self.square
        if not _SMALL < square < _LARGE and 0 < square < math.inf:
            self.q.mul_(square**-0.5)
            self.own["scale"] *= square**0.5
            self.square = 1.0
