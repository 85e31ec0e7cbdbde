"""The energy-conserving family once more: slow, per tensor, in float64.

Written from the numbered steps of the published algorithms, with their letters, and
from nothing else. ``compat`` is the released code; without it the corrected rules
hold: one system whatever the groups, first momentum along the global gradient, weight
decay once in V and once in the force, no bounce at N_b = 0, eps2 tested on the loss.

Sources: De Luca, Silverstein, ICML 2022, arXiv 2201.11137 (BBI); De Luca, Gatti,
Silverstein, 2023, arXiv 2306.00352 (ECDSep, and its note for leapfrog); De Luca,
Nachman, Silverstein, Zheng, 2025, arXiv 2501.18419 (ECD_q1).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EPS1, EPS2 = 1e-10, 1e-40

#: Loss and one gradient per tensor, at the present parameters.
Evaluate = Callable[[], tuple[float, list[Tensor]]]
#: ``draw(kind, count)``: one array for all tensors, in parameter order.
Draw = Callable[[str, int], Tensor]


def squared(tensors: Sequence[Tensor]) -> float:
    """Return the sum of squares of all entries, added exactly."""
    return math.fsum(v * v for t in tensors for v in t.reshape(-1).tolist())


def cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return one array cut into tensors shaped as `like`."""
    pieces = flat.split([t.numel() for t in like])
    return [piece.reshape(t.shape) for piece, t in zip(pieces, like, strict=True)]


class Rotating:
    """What the rules that rotate the momentum share: one system of all groups.

    Args:
        groups: One list of tensors per group.
        settings: Of every group: lr, wd; of the first what the rule reads.
        draw: Source of random numbers.
        compat: The released rules; the first group's lr holds for all.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        settings: Sequence[dict],
        draw: Draw,
        compat: bool = False,
    ):
        self.draw, self.compat, self.head = draw, compat, settings[0]
        self.xs = [x for tensors in groups for x in tensors]
        pairs = list(zip(groups, settings, strict=True))
        self.wds = [s["wd"] for tensors, s in pairs for _ in tensors]
        self.lrs = [
            (settings[0] if compat else s)["lr"]
            for tensors, s in pairs
            for _ in tensors
        ]
        self.n = sum(x.numel() for x in self.xs)
        self.nu = self.head["nu"]
        if self.head["scaled"]:
            self.lrs = [lr / math.sqrt(self.head["eta"]) for lr in self.lrs]
            self.nu /= math.sqrt(self.n)
        self.iteration = 0
        self.shift = 0.0
        self.first: list[float] = []

    def potential(self, loss: float) -> float:
        """Return loss + L2 - F0, without shift."""
        pairs = zip(self.wds, self.xs, strict=True)
        decay = sum(0.5 * wd * squared([x]) for wd, x in pairs)
        return loss + decay - self.head["F0"]

    def forces(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Return G = g + w_d θ."""
        parts = zip(grads, self.wds, self.xs, strict=True)
        return [g + wd * x for g, wd, x in parts]

    def normal(self) -> list[Tensor]:
        """Return z, tensor by tensor."""
        return cut(self.draw("normal", self.n), self.xs)


class ECDSep(Rotating):
    """Steps 1 to 7 of ECDSep, F0 tuning, the scaled interface, s0, abs, first_order.

    The head's settings: F0, deltaEn, eta, nu, s, energy, scaled, gamma, consEn,
    tuning, batches, rule. ``compat``: eps2 tested on V, shifts measured in V, kick
    without the shift.
    """

    def step(self, evaluate: Evaluate) -> float:
        """Take one step, return the loss at its start."""
        loss, grads = evaluate()
        head = self.head
        eta, s, nu = head["eta"], head["s"], self.nu
        delta = head["deltaEn"] if s == 1 else 1.0
        xs = self.xs
        unshifted = self.potential(loss)
        Phi = unshifted - self.shift
        if head["tuning"]:
            if Phi <= 0:
                self.shift += 5 * (Phi**eta if self.compat else Phi)
                return loss
        elif not (Phi > 0 and (Phi**eta if self.compat else Phi) > EPS2):
            return loss
        V = Phi**eta
        if head["rule"] == "polyak":
            Gs = self.forces(grads)
            for x, lr, G in zip(xs, self.lrs, Gs, strict=True):
                square = squared([G]) if self.compat else squared(Gs)
                x.sub_(2 * lr * Phi * G / (eta * (square + 1e-8)))
            return loss
        absolute = head["rule"] == "absolute"
        if self.iteration == 0:
            given = head["energy"]
            self.E = math.log(V) + math.log(s + delta)
            if given is not None:
                self.E = eta * math.log(given)
            if absolute:
                scale = delta / sum(float(g.abs().sum()) for g in grads)
            else:
                scale = math.sqrt(delta / squared(grads))
            self.ps = [-g * scale for g in grads]
            self.p2 = delta
            self.first = [Phi]
        elif len(self.first) < head["batches"]:
            self.first.append(Phi)
            mean = sum(self.first) / len(self.first)
            self.E = eta * math.log(mean) + math.log(s + delta)
        if head["gamma"]:
            nu = nu * (V * (s + delta) / math.exp(self.E)) ** head["gamma"]

        r = 1.0
        if head["consEn"]:
            T = math.exp(self.E) / V - s
            if not (abs(T - self.p2) < EPS1 or T < 0 or self.p2 == 0):
                r = T / self.p2 if absolute else math.sqrt(T / self.p2)

        base = unshifted if self.compat else Phi
        for i, G in enumerate(self.forces(grads)):
            self.ps[i] = r * self.ps[i] - self.lrs[i] * (eta / base) * G
        if absolute:
            A = math.fsum(abs(v) for p in self.ps for v in p.reshape(-1).tolist())
            for i, x in enumerate(xs):
                x.add_(self.lrs[i] * self.ps[i].sign() / (s + A))
            if nu:
                parts = zip(self.ps, self.normal(), strict=True)
                turned = [p / A + nu * z for p, z in parts]
                norm = math.fsum(float(t.abs().sum()) for t in turned)
                self.ps = [A * t / norm for t in turned]
            self.p2 = A
        else:
            P = squared(self.ps)
            N = math.sqrt(P)
            for i, x in enumerate(xs):
                x.add_(2 * self.lrs[i] * self.ps[i] / (s + P))
            if nu:
                parts = zip(self.ps, self.normal(), strict=True)
                turned = [p / N + nu * z for p, z in parts]
                norm = math.sqrt(squared(turned))
                self.ps = [N * t / norm for t in turned]
            self.p2 = P
        self.iteration += 1
        return loss


class ECDSepLeapfrog(Rotating):
    """Leapfrog of the note; the head's settings as for ECDSep, with s = 1."""

    def step(self, evaluate: Evaluate) -> float:
        """Take one step, return the loss at its start."""
        loss, grads = evaluate()
        head = self.head
        eta, delta = head["eta"], head["deltaEn"]
        Phi = self.potential(loss) - self.shift
        if head["tuning"]:
            if Phi <= 0:
                self.shift += 5 * Phi
                return loss
        elif not Phi > EPS2:
            return loss
        V = Phi**eta
        first = self.iteration == 0
        if first:
            self.E = math.log(V) + math.log(1 + delta)
            scale = math.sqrt(delta / squared(grads))
            self.ps = [-g * scale for g in grads]
            self.first = [Phi]
        elif len(self.first) < head["batches"]:
            self.first.append(Phi)
            mean = sum(self.first) / len(self.first)
            self.E = eta * math.log(mean) + math.log(1 + delta)
        half = [
            0.5 * lr * (eta / Phi) * G
            for lr, G in zip(self.lrs, self.forces(grads), strict=True)
        ]
        if not first:
            self.ps = [p - h for p, h in zip(self.ps, half, strict=True)]
        p2 = squared(self.ps)
        if head["consEn"]:
            T = math.exp(self.E) / V - 1
            if not (abs(T - p2) < EPS1 or T < 0 or p2 == 0):
                self.ps = [p * math.sqrt(T / p2) for p in self.ps]
        self.ps = [p - h for p, h in zip(self.ps, half, strict=True)]
        P = squared(self.ps)
        for x, lr, p in zip(self.xs, self.lrs, self.ps, strict=True):
            x.add_(2 * lr * p / (1 + P))
        nu = self.nu * (V * (1 + delta) / math.exp(self.E)) ** head["gamma"]
        if self.nu and not first:
            N = math.sqrt(P)
            parts = zip(self.ps, self.normal(), strict=True)
            turned = [p / N + nu * z for p, z in parts]
            norm = math.sqrt(squared(turned))
            self.ps = [N * t / norm for t in turned]
        elif self.nu:
            self.normal()  # drawn, not used: the draws of a step are its own
        self.iteration += 1
        return loss


class ECDq1(Rotating):
    """ECD_q1 and its variants.

    The head's settings: F0, eta, nu, gamma, scaled, step, consEn, tuning.
    ``compat``: projection per tensor, exponent -1 - gamma.
    """

    def step(self, evaluate: Evaluate) -> float:
        """Take one step, return the loss at its start."""
        loss, grads = evaluate()
        head, n = self.head, self.n
        eta, gamma, kind = head["eta"], head["gamma"], head["step"]
        Phi = self.potential(loss) - self.shift
        if head["tuning"]:
            if Phi <= 0:
                self.shift += 5 * Phi
                return loss
        elif not Phi > EPS2:
            return loss
        L = max(self.potential(loss) + head["F0"], 0.0)
        g2 = squared(grads)
        if self.iteration == 0:
            self.us = [-g / math.sqrt(g2) for g in grads]
            self.p2 = 1.0
            self.g0 = g2
        if head["consEn"] and abs(1 - self.p2) >= EPS1 and self.p2 != 0:
            self.us = [u / math.sqrt(self.p2) for u in self.us]
        exponent = -1 - gamma if self.compat else gamma - 1
        coefficient = (n * eta - 2 * gamma) / (2 * (n - 1)) * Phi**exponent

        ones = [torch.ones_like(g) for g in grads]
        kicks = drifts = ones
        if kind == "first_gradient":
            kicks = drifts = [o / math.sqrt(self.g0 + 1e-8) for o in ones]
        elif kind == "theta":
            kicks = drifts = [o * 2 * L / math.sqrt(g2 + 1e-8) for o in ones]
        elif kind == "adaptive":
            kicks = [o * 2 * math.sqrt(L / (g2 + 1e-8)) / math.sqrt(eta) for o in ones]
            drifts = [o * 2 * math.sqrt(L / g2) / math.sqrt(eta) for o in ones]
        elif kind == "elementwise":
            kicks = drifts = [2 * (L / ((g**2 + 1e-8) * n * eta)).sqrt() for g in grads]

        Gs = self.forces(grads)
        dots = [float((u * G).sum()) for u, G in zip(self.us, Gs, strict=True)]
        if not self.compat:
            dots = [math.fsum(dots)] * len(dots)
        for i, x in enumerate(self.xs):
            u, G, lr = self.us[i], Gs[i], self.lrs[i]
            self.us[i] = u = u - lr * kicks[i] * coefficient * (G - u * dots[i])
            direction = u.sign() if kind == "sign" else u
            x.add_(lr * drifts[i] * Phi**gamma * direction)
        self.p2 = squared(self.us)
        if self.nu:
            N = math.sqrt(self.p2)
            parts = zip(self.us, self.normal(), strict=True)
            turned = [u / N + self.nu * z for u, z in parts]
            norm = math.sqrt(squared(turned))
            self.us = [N * t / norm for t in turned]
        self.iteration += 1
        return loss


def settings_of(name: str, arguments: dict) -> dict:
    """Return this project's arguments under the papers' names.

    Defaults are those published: T0 = 1000, N_b = 1, T1 = 3000, nu = 1e-5.
    """
    get = arguments.get
    common = {
        "wd": get("weight_decay", 0.0),
        "deltaEn": get("extra_energy", 0.0),
        "consEn": get("conserve_energy", True),
        "tuning": get("self_tuning", False),
        "batches": get("energy_batches", 1),
    }
    if name == "BBI":
        return common | {
            "lr": arguments["lr"],
            "v0": get("f_min", 0.0),
            "T0": get("bounce_every", 1000),
            "N_b": get("fixed_bounces", 1),
            "T1": get("patience", 3000),
            "bounce": get("bounce", "cube"),
        }
    leapfrog = name == "ECDSepLeapfrog"
    damping = get("noise_damping", 1.0 if leapfrog else 0.0)
    return common | {
        "lr": arguments["lr"],
        "F0": get("f_min", 0.0),
        "eta": get("eta", 100.0 if name == "ECDq1" else 1.0),
        "nu": get("nu", 1e-3 if leapfrog else 1e-5),
        "s": get("s", 1.0),
        "energy": get("energy"),
        "scaled": get("scaled", False),
        "gamma": get("gamma", 0.0) if name == "ECDq1" else damping,
        "rule": get("rule", "standard"),
        "step": get("step_size", "constant"),
    }


def recorded(seed: int = 5) -> Callable[[str, int], Tensor]:
    """Return a source of draws that gives the same arrays to whoever asks in turn."""
    draws = torch.Generator().manual_seed(seed)

    def draw(kind: str, count: int) -> Tensor:
        law = torch.rand if kind == "uniform" else torch.randn
        return law(count, generator=draws, dtype=torch.float64)

    return draw
