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
