"""The energy-conserving family once more: slow, per tensor, in float64.

Written from the numbered steps of the published algorithms, with their letters, and
from nothing else. ``compat`` is the released code; without it the corrected rules
hold: one system whatever the groups, first momentum along the global gradient, weight
decay once in V and once in the force, no bounce at N_b = 0, eps2 tested on the loss.

Sources: De Luca, Silverstein, ICML 2022, arXiv 2201.11137 (BBI); De Luca, Gatti,
Silverstein, 2023, arXiv 2306.00352 (ECDSep).
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


class BBI:
    """Steps 1 to 7 of BBI.

    Args:
        groups: One list of tensors per group.
        settings: Of every group: lr, v0, wd; of the first also deltaEn, T0, N_b, T1,
            consEn, bounce ("cube" or "isotropic").
        draw: Source of random numbers.
        compat: The released rules.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Tensor]],
        settings: Sequence[dict],
        draw: Draw,
        compat: bool = False,
    ):
        self.groups, self.settings = groups, settings
        self.draw, self.compat = draw, compat
        self.iteration = 0
        self.bounces: list[int] = []  # calls at which a bounce came
        self.calls = 0
        self.pi: dict[int, Tensor] = {}

    def step(self, evaluate: Evaluate) -> float:
        """Take one step or bounce, return the loss at its start."""
        loss, grads = evaluate()
        head = self.settings[0]
        by_group, left = [], iter(grads)
        for tensors in self.groups:
            by_group.append([next(left) for _ in tensors])
        if self.compat:
            if self.iteration == 0:
                self._begin(loss - head["v0"], head)
            for tensors, gs, s in zip(
                self.groups, by_group, self.settings, strict=True
            ):
                V = loss - s["v0"]
                self._system(V, [tensors], [gs], [s])
        else:
            V = loss - head["v0"]
            for tensors, s in zip(self.groups, self.settings, strict=True):
                V += 0.5 * s["wd"] * squared(tensors)
            if self.iteration == 0:
                self._begin(V, head)
            self._system(V, self.groups, by_group, self.settings)
        self.calls += 1
        return loss

    def _begin(self, V0: float, head: dict) -> None:
        self.V0, self.E = V0, V0 + head["deltaEn"]
        self.c0 = self.c = self.b = 0
        self.best = math.inf

    def _system(
        self,
        V: float,
        groups: Sequence[Sequence[Tensor]],
        gradients: Sequence[Sequence[Tensor]],
        settings: Sequence[dict],
    ) -> None:
        head = settings[0]
        if not V > EPS2:
            return
        E = self.E
        a, e = V / E, E / V
        xs = [x for tensors in groups for x in tensors]
        lrs = [s["lr"] for t, s in zip(groups, settings, strict=True) for _ in t]
        wds = [s["wd"] for t, s in zip(groups, settings, strict=True) for _ in t]
        gs = [g for tensors in gradients for g in tensors]
        forces = [g + wd * x for g, wd, x in zip(gs, wds, xs, strict=True)]

        fresh = [i for i, x in enumerate(xs) if id(x) not in self.pi]
        # sqrt(E²/V0 - V0), written so that it is 0, not round-off, at E = V0
        size = math.sqrt(self.V0 * ((E / self.V0) ** 2 - 1))
        whole = math.sqrt(squared([forces[i] for i in fresh]))
        for i in fresh:
            norm = math.sqrt(squared([forces[i]])) if self.compat else whole
            self.pi[id(xs[i])] = -(forces[i] / norm) * size
        pis = [self.pi[id(x)] for x in xs]

        S = squared(pis)
        r = 1.0
        if head["consEn"]:
            T = V * (e * e - 1)
            if not (abs(S - T) < EPS1 or T < 0):
                r = math.sqrt(T / S)

        never_fixed = not self.compat and head["N_b"] == 0
        if self.c != head["T1"] and (never_fixed or self.c0 != head["T0"]):
            for i, (x, pi) in enumerate(zip(xs, pis, strict=True)):
                pi.mul_(r)
                pi.sub_(0.5 * lrs[i] * (a + e) * forces[i])
                x.add_(lrs[i] * a * pi)
            self.c0 += 1
            self.c += 1
            self.iteration += 1
            if V < self.best:
                self.best, self.c = V, 0
            return

        count = sum(x.numel() for x in xs)
        if head["bounce"] == "cube":
            ws = cut(self.draw("uniform", count) - 0.5, xs)
        else:
            ws = cut(self.draw("normal", count), xs)
        total = squared(ws)
        for pi, w in zip(pis, ws, strict=True):
            pi.copy_(w * math.sqrt(S / total))
        if self.c0 == head["T0"] and not never_fixed:
            self.b += 1
            self.c0 = 0 if self.b < head["N_b"] else self.c0 + 1
        self.c = 0
        self.bounces.append(self.calls)


class ECDSep:
    """Steps 1 to 7 of ECDSep; all groups form one system in either form.

    Args:
        groups: One list of tensors per group.
        settings: Of every group: lr, wd; of the first also F0, deltaEn, eta, nu, s,
            consEn.
        draw: Source of random numbers.
        compat: The released rules: the first group's lr for all, eps2 tested on V.
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
        self.iteration = 0

    def step(self, evaluate: Evaluate) -> float:
        """Take one step, return the loss at its start."""
        loss, grads = evaluate()
        eta, s, nu = self.head["eta"], self.head["s"], self.head["nu"]
        delta = self.head["deltaEn"] if s == 1 else 1.0
        xs = self.xs
        decay = sum(0.5 * wd * squared([x]) for wd, x in zip(self.wds, xs, strict=True))
        Phi = loss + decay - self.head["F0"]
        if not (Phi > 0 and (Phi**eta if self.compat else Phi) > EPS2):
            return loss
        V = Phi**eta
        if self.iteration == 0:
            self.E = math.log(V) + math.log(s + delta)
            scale = math.sqrt(delta / squared(grads))
            self.ps = [-g * scale for g in grads]
            self.p2 = delta

        r = 1.0
        if self.head["consEn"]:
            T = math.exp(self.E) / V - s
            if not (abs(T - self.p2) < EPS1 or T < 0 or self.p2 == 0):
                r = math.sqrt(T / self.p2)

        for i, x in enumerate(xs):
            force = grads[i] + self.wds[i] * x
            self.ps[i] = r * self.ps[i] - self.lrs[i] * (eta / Phi) * force
        P = squared(self.ps)
        N = math.sqrt(P)
        for i, x in enumerate(xs):
            x.add_(2 * self.lrs[i] * self.ps[i] / (s + P))

        if nu:
            zs = cut(self.draw("normal", sum(x.numel() for x in xs)), xs)
            turned = [p / N + nu * z for p, z in zip(self.ps, zs, strict=True)]
            norm = math.sqrt(squared(turned))
            self.ps = [N * t / norm for t in turned]
        self.p2 = P
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
    return common | {
        "lr": arguments["lr"],
        "F0": get("f_min", 0.0),
        "eta": get("eta", 1.0),
        "nu": get("nu", 1e-5),
        "s": get("s", 1.0),
    }


def recorded(seed: int = 5) -> Callable[[str, int], Tensor]:
    """Return a source of draws that gives the same arrays to whoever asks in turn."""
    draws = torch.Generator().manual_seed(seed)

    def draw(kind: str, count: int) -> Tensor:
        law = torch.rand if kind == "uniform" else torch.randn
        return law(count, generator=draws, dtype=torch.float64)

    return draw
