"""The passes of the energy-conserving updates, entry by entry in float64."""

import math


def kick(q, g, x, r, k, decay):
    """q ← r q - k (g + decay x); the sum of its squares."""
    for i in range(len(q)):
        q[i] = r * q[i] - k * (g[i] + decay * x[i])
    return square(q)


def drift(q, x, d):
    """x ← x + d q."""
    for i in range(len(q)):
        x[i] += d * q[i]


def turn(q, z, size):
    """q ← q + size z; the sum of its squares."""
    for i in range(len(q)):
        q[i] += size * z[i]
    return square(q)


def square(q):
    return math.fsum(v * v for v in q)


def dot(q, g, x, decay):
    return math.fsum(q[i] * (g[i] + decay * x[i]) for i in range(len(q)))


def explore(x, g, c, u, mean, rule, z):
    """One exploring step of lists, in place; `rule` as in `Body.explore`."""
    for i, center in enumerate(c):
        away = x[i] - center

        def force(weights, i=i, away=away):
            decay, spring, noise = weights
            return decay * x[i] + spring * away + noise * z[i]

        d = p = g[i] + force(rule.inside)
        if rule.momentum:
            u[i] = rule.momentum * u[i] + rule.fresh * p
            d = p + rule.momentum * u[i] if rule.nesterov else u[i]
        x[i] -= rule.lr * (d + force(rule.outside))
        mean[i] = (1 - rule.alpha) * mean[i] + rule.alpha * x[i]
