"""Entropy-SGD once more: four published rules, per tensor, in float64.

Written from the published algorithms and nothing else, one function body per source.
Each rule handles one list of tensors; ``evaluate()`` returns the loss and one gradient
per tensor at the present parameters, ``draw(k)`` standard normals of k entries.

Sources: Chaudhari et al., ICLR 2017, arXiv 1611.01838 (paper; the released Lua and
Python codes); Chaudhari et al., Res. Math. Sci. 2018, arXiv 1704.04932 (hj).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Evaluate = Callable[[], tuple[float, list[Tensor]]]
Draw = Callable[[int], Tensor]


class Entropy:
    """What the rules share: tensors, hyper-parameters, state.

    Args:
        xs: Tensors to move in place.
        settings: lr, m, d, wd, nesterov, L, llr, g0, g1, eps, and what a rule reads.
        draw: Source of the noise, called once per exploring step for all tensors.
    """

    def __init__(self, xs: Sequence[Tensor], settings: dict, draw: Draw):
        self.xs, self.s, self.draw = list(xs), settings, draw
        self.t = 0
        self.v: list[Tensor] | None = None
        self.u = [torch.zeros_like(x) for x in xs]

    def noise(self) -> list[Tensor]:
        """Return one array cut into tensors, zeros without noise."""
        if self.s["eps"] == 0:
            return [torch.zeros_like(x) for x in self.xs]
        flat = self.draw(sum(x.numel() for x in self.xs))
        pieces = flat.split([x.numel() for x in self.xs])
        return [z.reshape(x.shape) for z, x in zip(pieces, self.xs, strict=True)]

    def sgd(self, grads: Sequence[Tensor]) -> None:
        """x <- x - lr q, as torch.optim.SGD: what every rule is at L = 0."""
        s = self.s
        q = [g + s["wd"] * x for g, x in zip(grads, self.xs, strict=True)]
        if s["m"]:
            if self.v is None:
                self.v = [t.clone() for t in q]
            else:
                self.v = [
                    s["m"] * v + (1 - s["d"]) * t
                    for v, t in zip(self.v, q, strict=True)
                ]
            pairs = zip(q, self.v, strict=True)
            q = [t + s["m"] * v if s["nesterov"] else v for t, v in pairs]
        for x, t in zip(self.xs, q, strict=True):
            x.sub_(s["lr"] * t)


class Lua(Entropy):
    """The released Lua optimizer; `skip`: the evaluation at x is the first of L."""

    def step(self, evaluate: Evaluate, skip: bool = False) -> float:
        """Take one step."""
        s, m, d = self.s, self.s["m"], self.s["d"]
        loss, grads = evaluate()
        self.t += 1
        g = min(s["g0"] * (1 + s["g1"]) ** self.t, s.get("cap", math.inf))
        if s["L"] == 0:
            self.sgd(grads)
            return loss
        centers = [x.clone() for x in self.xs]
        mus = [x.clone() for x in self.xs]
        us = [torch.zeros_like(x) for x in self.xs]
        for inner in range(s["L"]):
            if inner or not skip:
                _, grads = evaluate()
            noise = self.noise()
            for i, x in enumerate(self.xs):
                p = grads[i]
                if m:
                    us[i] = m * us[i] + (1 - d) * p
                    p = p + m * us[i] if s["nesterov"] else us[i]
                p = p - g * (centers[i] - x) + s["wd"] * x
                p = p + s["eps"] / math.sqrt(s["llr"] / 2) * noise[i]
                x.sub_(s["llr"] * p)
                mus[i] = 0.75 * mus[i] + 0.25 * x
        for x, center, mu in zip(self.xs, centers, mus, strict=True):
            x.copy_(center - s["lr"] * (center - mu))
        return loss


class Python(Entropy):
    """The released PyTorch optimizer, with t counted."""

    def step(self, evaluate: Evaluate) -> float:
        """Take one step."""
        s, m, d = self.s, self.s["m"], self.s["d"]
        loss, grads = evaluate()
        if self.v is None:
            self.v = [g.clone() for g in grads]
        g = s["g0"] * (1 + s["g1"]) ** self.t
        self.t += 1
        centers = [x.clone() for x in self.xs]
        mus = [x.clone() for x in self.xs]
        us = [torch.zeros_like(x) for x in self.xs]
        raw = grads
        for _ in range(s["L"]):
            _, grads = evaluate()
            noise = self.noise()
            for i, x in enumerate(self.xs):
                p = grads[i] + s["wd"] * x
                if m:
                    us[i] = m * us[i] + (1 - d) * p
                    p = p + m * us[i] if s["nesterov"] else us[i]
                p = p - g * (centers[i] - x)
                p = p + s["eps"] / math.sqrt(s["llr"] / 2) * noise[i]
                x.sub_(s["llr"] * p)
                mus[i] = 0.75 * mus[i] + 0.25 * x
        for i, x in enumerate(self.xs):
            x.copy_(centers[i])
            D = x - mus[i] if s["L"] else raw[i]
            D = D + s["wd"] * x
            if m:
                self.v[i] = m * self.v[i] + (1 - d) * D
                D = D + m * self.v[i] if s["nesterov"] else self.v[i]
            x.sub_(s["lr"] * D)
        return loss


class Paper(Entropy):
    """Algorithm 1 of the paper, with x <- x - lr (x - mu); `literal`: lr gamma.

    The noise has the sign of the released codes; its law is the same.
    """

    def step(self, evaluate: Evaluate) -> float:
        """Take one step."""
        s = self.s
        g = s["g0"] * (1 + s["g1"]) ** self.t
        self.t += 1
        loss, grads = evaluate()
        if s["L"] == 0:
            self.sgd(grads)
            return loss
        centers = [x.clone() for x in self.xs]
        mus = [x.clone() for x in self.xs]
        for inner in range(s["L"]):
            if inner:
                _, grads = evaluate()
            noise = self.noise()
            for i, x in enumerate(self.xs):
                dx = grads[i] + s["wd"] * x - g * (centers[i] - x)
                x.copy_(x - s["llr"] * dx - math.sqrt(s["llr"]) * s["eps"] * noise[i])
                mus[i] = 0.25 * mus[i] + 0.75 * x
        lr = s["lr"] * (g if s.get("literal") else 1)
        for x, center, mu in zip(self.xs, centers, mus, strict=True):
            x.copy_(center - lr * (center - mu))
        return loss


class HJ(Entropy):
    """Deep relaxation's Entropy-SGD: everything goes through the momentum.

    Reads rho; alpha (0.25) or a function of the step; `outer_noise`.
    """

    def step(self, evaluate: Evaluate) -> float:
        """Take one step."""
        s, m = self.s, self.s["m"]
        loss, raw = evaluate()
        self.t += 1
        g = min(s["g0"] * (1 + s["g1"]) ** self.t, s.get("cap", math.inf))
        if s["L"] == 0:
            self.sgd(raw)
            return loss
        centers = [x.clone() for x in self.xs]
        mus = [x.clone() for x in self.xs]
        for inner in range(s["L"]):
            _, grads = evaluate()
            noise = self.noise()
            alpha = s.get("alpha", 0.25)
            alpha = alpha(inner) if callable(alpha) else alpha
            for i, x in enumerate(self.xs):
                q = grads[i] + s["wd"] * x + g * (x - centers[i])
                q = q + s["eps"] / math.sqrt(s["llr"] / 2) * noise[i]
                self.u[i] = m * self.u[i] + q
                x.sub_(s["llr"] * (q + m * self.u[i]))
                mus[i] = (1 - alpha) * mus[i] + alpha * x
        if self.v is None:
            self.v = [torch.zeros_like(x) for x in self.xs]
        for i, x in enumerate(self.xs):
            D = centers[i] - mus[i] + s.get("rho", 0.0) * raw[i]
            self.v[i] = m * self.v[i] + D
            x.copy_(centers[i] - s["lr"] * (D + m * self.v[i]))
        return loss
