r"""What classifiers that estimate the ratio of two densities minimize.

========  =====================================================  ==========
symbol    meaning                                                shape
========  =====================================================  ==========
x         samples                                                (B, d)
y         labels: 1 where x was drawn from p1, 0 from p0         (B,)
h         output of the network                                  (B,)
f         estimate of the ratio p1(x) / p0(x)                    (B,), >= 0
c         estimate of p1 / (p0 + p1); f = c / (1 - c)            (B,), 0 to 1
========  =====================================================  ==========
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_ecd.checks import one_of

#: Keeps logarithms and ratios finite.
EPSILON = 1e-7

#: h -> f
RATIOS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": torch.exp,
    "square": torch.square,
    "linear": torch.relu,
}
#: h -> c
PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "odds": torch.sigmoid,
    "probit": torch.special.ndtr,
    "arctan": lambda h: 0.5 + torch.atan(h) / math.pi,
}


def estimate(h: Tensor, parametrization: str) -> Tensor:
    """Return what a loss takes: f, or c kept away from 0 and 1."""
    if parametrization in RATIOS:
        return RATIOS[parametrization](h)
    return PROBABILITIES[parametrization](h).clamp(EPSILON, 1 - EPSILON)


def ratio(value: Tensor, parametrization: str) -> Tensor:
    """Return f of what `estimate` returned."""
    return value if parametrization in RATIOS else value / (1 - value)


def mlc(f: Tensor, y: Tensor) -> Tensor:
    """Return the loss of a maximum-likelihood classifier, for every sample."""
    return -(y * torch.log(f + EPSILON) + (1 - y) * (1 - f))


def sqr(f: Tensor, y: Tensor) -> Tensor:
    """Return the square-root loss of every sample."""
    root = torch.sqrt(f + EPSILON)
    return y / root + (1 - y) * root


def bce(c: Tensor, y: Tensor) -> Tensor:
    """Return the binary cross-entropy of every sample."""
    return -(y * torch.log(c) + (1 - y) * torch.log1p(-c))


def mse(c: Tensor, y: Tensor) -> Tensor:
    """Return the squared error of every sample."""
    return y * (1 - c).square() + (1 - y) * c.square()


#: Loss -> its formula and the parametrizations that it allows, the default first.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Sequence[str]]] = {
    "mlc": (mlc, tuple(RATIOS)),
    "sqr": (sqr, tuple(RATIOS)),
    "bce": (bce, tuple(PROBABILITIES)),
    "mse": (mse, tuple(PROBABILITIES)),
}


def checked(loss: str, parametrization: str | None) -> str:
    """Return the parametrization to use, or raise a ValueError.

    Args:
        loss: A key of `LOSSES`.
        parametrization: One that the loss allows; None: its default.
    """
    one_of(LOSSES, loss=loss)
    allowed = LOSSES[loss][1]
    if parametrization is None:
        return allowed[0]
    if parametrization not in allowed:
        raise ValueError(
            f"parametrization must be one of {', '.join(allowed)} for the loss "
            f"{loss}, got {parametrization!r}"
        )
    return parametrization
