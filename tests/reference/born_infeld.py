"""BBI once more: slow, per tensor, in float64; see `tests.reference.ecd`."""

import math
from collections.abc import Sequence

from torch import Tensor

from tests.reference.ecd import EPS1, EPS2, Draw, Evaluate, cut, squared


class BBI:
    """Steps 1 to 7 of BBI, and BBI_v0tuning.

    Args:
        groups: One list of tensors per group.
        settings: Of every group: lr, v0, wd; of the first also deltaEn, T0, N_b, T1,
            consEn, tuning, batches, bounce ("cube" or "isotropic").
        draw: Source of random numbers.
        compat: The released rules: weight decay is twice in the force, not in E, and
            the shift is reset until the first move.
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
        self.shift = 0.0
        self.E = 0.0
        self.begun = False
        self.first: list[float] = []  # V of the first batches
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
                self.shift = 0.0
            for tensors, gs, s in zip(
                self.groups, by_group, self.settings, strict=True
            ):
                V = loss - s["v0"] - self.shift + 0.5 * s["wd"] * squared(tensors)
                self._system(V, [tensors], [gs], [s])
        else:
            V = loss - head["v0"] - self.shift
            for tensors, s in zip(self.groups, self.settings, strict=True):
                V += 0.5 * s["wd"] * squared(tensors)
            if self.iteration == 0 and V > (0 if head["tuning"] else EPS2):
                self._begin(V, head)
            elif V > (0 if head["tuning"] else EPS2):
                if len(self.first) < head["batches"]:
                    self.first.append(V)
                    self.V0 = sum(self.first) / len(self.first)
                    self.E = self.V0 + head["deltaEn"]
            self._system(V, self.groups, by_group, self.settings)
        self.calls += 1
        return loss

    def _begin(self, V0: float, head: dict) -> None:
        self.V0, self.E = V0, V0 + head["deltaEn"]
        self.first = [V0]
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
        if head["tuning"]:
            if V <= 0:
                self.shift += 5 * V
                return
        elif not V > EPS2:
            return
        E = self.E
        a, e = V / E, E / V
        xs = [x for tensors in groups for x in tensors]
        lrs = [s["lr"] for t, s in zip(groups, settings, strict=True) for _ in t]
        wds = [s["wd"] for t, s in zip(groups, settings, strict=True) for _ in t]
        gs = [g for tensors in gradients for g in tensors]
        times = 2 if self.compat else 1
        starts = [g + wd * x for g, wd, x in zip(gs, wds, xs, strict=True)]
        forces = [g + times * wd * x for g, wd, x in zip(gs, wds, xs, strict=True)]

        fresh = [i for i, x in enumerate(xs) if id(x) not in self.pi]
        # sqrt(E²/V0 - V0), written so that it is 0, not round-off, at E = V0
        size = math.sqrt(self.V0 * ((E / self.V0) ** 2 - 1))
        whole = math.sqrt(squared([starts[i] for i in fresh]))
        for i in fresh:
            norm = math.sqrt(squared([starts[i]])) if self.compat else whole
            self.pi[id(xs[i])] = -(starts[i] / norm) * size
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
