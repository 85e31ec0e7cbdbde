"""The synthetic objectives once more, in plain Python floats, one point at a time."""

import math


def quadratic(x, curvatures, minimum=0.0):
    total = 0.0
    for h, xi in zip(curvatures, x, strict=True):
        total += 0.5 * h * xi * xi
    return total + minimum


def rosenbrock(x, minimum=0.0):
    total = 0.0
    for i in range(len(x) - 1):
        total += 100 * (x[i + 1] - x[i] ** 2) ** 2 + (1 - x[i]) ** 2
    return total + minimum


def zakharov(x):
    squares, s = 0.0, 0.0
    for i, xi in enumerate(x, start=1):
        squares += xi**2
        s += 0.5 * i * xi
    return squares + s**2 + s**4


def ackley(x, b, c=0.0):
    n = len(x)
    norm = math.sqrt(sum(xi**2 for xi in x))
    cosines = sum(math.cos(2 * math.pi * xi) for xi in x)
    return (
        -20 * math.exp(-b * norm / math.sqrt(n))
        - math.exp(cosines / n)
        + 20
        + math.e
        + c * norm**8
    )


def two_basins(x):
    a = (x[0] + 2) ** 2 + (x[1] + 2) ** 2
    b = (x[0] - 2) ** 2 + (x[1] - 2) ** 2
    wells = -math.exp(-0.4 * a) - (1 - 2.75e-6) * math.exp(-0.8 * b)
    return wells + 0.001 * a * b + 1


def slope(function, x, step=1e-6):
    """The gradient of a function of a list of floats, by central differences."""
    gradient = []
    for i in range(len(x)):
        up, down = list(x), list(x)
        up[i] += step
        down[i] -= step
        gradient.append((function(up) - function(down)) / (2 * step))
    return gradient
