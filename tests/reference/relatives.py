"""Relatives of Entropy-SGD once more, per tensor, in float64.

Every rule is a class with `step(evaluate)`; ``evaluate()`` returns the loss and one
gradient per tensor at the present parameters, ``draw(k)`` standard normals of k
entries. `HJ` of `tests.reference.entropy` is the loop of HJB and HEAT.

Sources: Chaudhari et al. 2017, arXiv 1707.00424 (Parle, Elastic-SGD, Prox-SGD);
Chaudhari et al. 2018, arXiv 1704.04932 (FP); Zhang et al. 2019, arXiv 1907.08610
(Lookahead); Welling, Teh 2011 (SGLD); the development code of arXiv 1611.01838
(Entropy-Adam).
"""

import math

import torch

from tests.reference.entropy import Entropy


class Adam(Entropy):
    """Entropy-Adam: reads b1, b2, delta, rho, lrd; llr None takes Adam's own step."""

    def step(self, evaluate, skip):
        """Take one step."""
        s, m = self.s, self.s["m"]
        loss, raw = evaluate()
        old, self.t = self.t, self.t + 1
        b1, b2, lrd = s["b1"], s["b2"], s["lrd"]
        rate = s["lr"] / (1 + old * lrd)
        rate *= math.sqrt(1 - b2**self.t) / (1 - b1**self.t)
        llr = rate if s["llr"] is None else s["llr"]
        g = min(s["g0"] * (1 + s["g1"]) ** self.t, s.get("cap", math.inf))
        if not hasattr(self, "M"):
            self.M = [torch.zeros_like(x) for x in self.xs]
            self.V = [torch.zeros_like(x) for x in self.xs]
        if s["L"]:
            centers = [x.clone() for x in self.xs]
            mus = [x.clone() for x in self.xs]
            grads = raw
            for inner in range(s["L"]):
                if inner or not skip:
                    _, grads = evaluate()
                noise = self.noise()
                for i, x in enumerate(self.xs):
                    p = grads[i]
                    if m:
                        self.u[i] = m * self.u[i] + p
                        p = p + m * self.u[i]
                    p = p - g * (centers[i] - x) + s["wd"] * x
                    p = p + s["eps"] / math.sqrt(llr / 2) * noise[i]
                    x.sub_(llr * p)
                    mus[i] = (1 - s["alpha"]) * mus[i] + s["alpha"] * x
            ds = [
                s["rho"] * r + c - mu
                for r, c, mu in zip(raw, centers, mus, strict=True)
            ]
        else:
            centers = [x.clone() for x in self.xs]
            ds = [r + s["wd"] * x for r, x in zip(raw, self.xs, strict=True)]
        for i, x in enumerate(self.xs):
            self.M[i] = b1 * self.M[i] + (1 - b1) * ds[i]
            self.V[i] = b2 * self.V[i] + (1 - b2) * ds[i] ** 2
            x.copy_(centers[i] - rate * self.M[i] / (self.V[i].sqrt() + s["delta"]))
        return loss


class Langevin(Entropy):
    """SGLD; reads b."""

    def step(self, evaluate):
        """Take one step."""
        loss, grads = evaluate()
        self.t += 1
        lr = self.s["lr"] / (1 + self.t) ** self.s["b"]
        for x, g, z in zip(self.xs, grads, self.noise(), strict=True):
            x.sub_(lr * (g + self.s["wd"] * x + self.s["eps"] / math.sqrt(lr / 2) * z))
        return loss


class FixedPoint(Entropy):
    """FP."""

    def step(self, evaluate):
        """Take one step."""
        s, m = self.s, self.s["m"]
        loss, grads = evaluate()
        self.t += 1
        gamma = s["g0"] * (1 + s["g1"]) ** self.t
        xs = [x.clone() for x in self.xs]
        ps = [g + s["wd"] * x for g, x in zip(grads, xs, strict=True)]
        for _ in range(s["L"]):
            for y, x, p in zip(self.xs, xs, ps, strict=True):
                y.copy_(x - p / gamma)
            _, grads = evaluate()
            ps = [
                0.75 * p + 0.25 * (g + s["wd"] * y)
                for p, g, y in zip(ps, grads, self.xs, strict=True)
            ]
        if self.v is None:
            self.v = [torch.zeros_like(x) for x in xs]
        for i, x in enumerate(self.xs):
            self.v[i] = m * self.v[i] + ps[i]
            x.copy_(xs[i] - s["lr"] * (ps[i] + m * self.v[i]))
        return loss


class Prox(Entropy):
    """Prox-SGD: its momentum never rests, the iterate never returns."""

    def step(self, evaluate):
        """Take L steps."""
        s, m = self.s, self.s["m"]
        self.t += 1
        gamma = min(s["g0"] * (1 + s["g1"]) ** self.t, s["cap"])
        centers = [x.clone() for x in self.xs]
        losses = []
        for _ in range(s["L"]):
            loss, grads = evaluate()
            losses.append(loss)
            for i, x in enumerate(self.xs):
                q = grads[i] + s["wd"] * x + gamma * (x - centers[i])
                self.u[i] = m * self.u[i] + q
                x.sub_(s["lr"] * (q + m * self.u[i]))
        return losses[0]


class Slow(Entropy):
    """Lookahead on torch's SGD; reads inner (arguments of SGD)."""

    def step(self, evaluate):
        """Take k fast steps and keep a part of them."""
        slow = [x.clone() for x in self.xs]
        if not hasattr(self, "fast"):
            self.fast = torch.optim.SGD(
                [x.requires_grad_() for x in self.xs], **self.s["inner"]
            )
        losses = []
        for _ in range(self.s["L"]):
            loss, grads = evaluate()
            losses.append(loss)
            for x, g in zip(self.xs, grads, strict=True):
                x.grad = g
            self.fast.step()
        with torch.no_grad():
            for x, start in zip(self.xs, slow, strict=True):
                x.copy_(start + self.s["lr"] * (x - start))
        return losses[0]


class Replicas(Entropy):
    """Parle, and with L = 0 Elastic-SGD; reads n, rho0, rho_cap, beta.

    `self.xs` hold the master between steps; ``self.replicas[i]`` a list of tensors.
    """

    def step(self, evaluate):
        """Take one step of all replicas."""
        s, n = self.s, self.s["n"]
        self.t += 1
        grow = (1 + s["g1"]) ** self.t
        gamma, rho = min(s["g0"] * grow, s["cap"]), min(s["rho0"] * grow, s["rho_cap"])
        if not hasattr(self, "replicas"):
            self.replicas = [[x.clone() for x in self.xs] for _ in range(n)]
            zeros = [[torch.zeros_like(x) for x in self.xs] for _ in range(2 * n)]
            self.us, self.vs = zeros[:n], zeros[n:]
        losses, mus, pulls = [], [], []
        for i, replica in enumerate(self.replicas):
            for x, own in zip(self.xs, replica, strict=True):
                x.copy_(own)
            mu = [x.clone() for x in self.xs]
            for _ in range(s["L"]):
                loss, grads = evaluate()
                losses.append(loss)
                for j, x in enumerate(self.xs):
                    q = grads[j] + s["wd"] * x + gamma * (x - replica[j])
                    self.us[i][j] = s["m"] * self.us[i][j] + q
                    x.sub_(s["llr"] * (q + s["m"] * self.us[i][j]))
                    mu[j] = s["beta"] * mu[j] + (1 - s["beta"]) * x
            if s["L"] == 0:
                loss, grads = evaluate()
                losses.append(loss)
                pulls.append(
                    [g + s["wd"] * x for g, x in zip(grads, self.xs, strict=True)]
                )
            else:
                pulls.append([x - m for x, m in zip(replica, mu, strict=True)])
            mus.append(mu)
        r = [sum(mu[j] for mu in mus) / n for j in range(len(self.xs))]
        for i, replica in enumerate(self.replicas):
            for j, x in enumerate(replica):
                d = pulls[i][j] + rho * (x - r[j])
                self.vs[i][j] = s["m"] * self.vs[i][j] + d
                x.sub_(s["lr"] * (d + s["m"] * self.vs[i][j]))
        for j, x in enumerate(self.xs):
            x.copy_(sum(replica[j] for replica in self.replicas) / n)
        return losses[0]
