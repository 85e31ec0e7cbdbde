"""Losses of ratio estimators, sample by sample, and the minima of their means."""

import math
from collections.abc import Callable, Sequence

from scipy.integrate import quad


def value(h: float, parametrization: str) -> float:
    """Return the ratio f or the clamped probability c that an output h stands for."""
    if parametrization == "exponential":
        return math.exp(h)
    if parametrization == "square":
        return h * h
    if parametrization == "linear":
        return max(h, 0.0)
    if parametrization == "odds":
        c = 1 / (1 + math.exp(-h))
    elif parametrization == "probit":
        c = (1 + math.erf(h / math.sqrt(2))) / 2
    elif parametrization == "arctan":
        c = 0.5 + math.atan(h) / math.pi
    else:
        raise KeyError(parametrization)
    return min(max(c, 1e-7), 1 - 1e-7)


def ratio(h: float, parametrization: str) -> float:
    """Return the ratio that an output h stands for."""
    v = value(h, parametrization)
    return v / (1 - v) if parametrization in ("odds", "probit", "arctan") else v


def sample_loss(loss: str, v: float, y: int) -> float:
    """Return the loss of one sample; v is f (mlc, sqr) or c (bce, mse)."""
    if loss == "mlc":
        return -(y * math.log(v + 1e-7) + (1 - y) * (1 - v))
    if loss == "sqr":
        return (v + 1e-7) ** (-0.5 if y else 0.5)
    if loss == "bce":
        return -math.log(v) if y else -math.log(1 - v)
    if loss == "mse":
        return (1 - v) ** 2 if y else v**2
    raise KeyError(loss)


def mean_loss(
    loss: str, parametrization: str, h: Sequence[float], y: Sequence[int]
) -> float:
    """Return the mean loss of a batch."""
    losses = [
        sample_loss(loss, value(one, parametrization), label)
        for one, label in zip(h, y, strict=True)
    ]
    return sum(losses) / len(losses)


def integral(function: Callable[[float], float]) -> float:
    """Integrate over the line."""
    return quad(function, -15, 15, epsabs=1e-13, epsrel=1e-12, limit=400)[0]


def density(x: float, mu: float, sigma: float = 1.0) -> float:
    """Return the density of N(mu, sigma^2)."""
    z = (x - mu) / sigma
    return math.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi))


def population_loss(
    loss: str, mu1: float, mu0: float, tilt: float = 0.0, sigma1: float = 1.0
) -> float:
    """Return the mean loss of f = (p1/p0) e^(tilt x) under half N(mu1), half N(mu0)."""

    def mean(x: float) -> float:
        p1, p0 = density(x, mu1, sigma1), density(x, mu0)
        f = p1 / p0 * math.exp(tilt * x)
        v = f if loss in ("mlc", "sqr") else f / (1 + f)
        return (p1 * sample_loss(loss, v, 1) + p0 * sample_loss(loss, v, 0)) / 2

    return integral(mean)


def divergences(mu1: float, mu0: float, sigma1: float = 1.0) -> dict[str, float]:
    """Return KL(p1|p0), JS, the integrals of sqrt(p0 p1) and of p0 p1 / (p0 + p1)."""

    def of(term: Callable[[float, float], float]) -> float:
        return integral(lambda x: term(density(x, mu1, sigma1), density(x, mu0)))

    def js(a: float, b: float) -> float:
        m = (a + b) / 2
        return (a * math.log(a / m) + b * math.log(b / m)) / 2

    return {
        "kl": of(lambda a, b: a * math.log(a / b)),
        "js": of(js),
        "root": of(lambda a, b: math.sqrt(a * b)),
        "harmonic": of(lambda a, b: a * b / (a + b)),
    }
