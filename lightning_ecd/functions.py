r"""Synthetic objectives with known minima, for one point or many at once.

========  =============  ===========================
symbol    variable       shape and meaning
========  =============  ===========================
x         ``x``          (..., n) points
F         ``value``      (...) values
∇F        ``gradient``   (..., n) gradients
n         ``dimension``  number of coordinates
========  =============  ===========================

Every axis but the last is a batch. Sums over few coordinates are products with a
constant vector, up to fifteen times faster than `sum(-1)`. Many points are fastest as
columns, ``x = torch.empty(n, points).T``; the gradient comes back laid out likewise.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lightning_ecd.checks import at_least, one_of

Point = tuple[float, ...]
Form = Literal["flat", "regularized", "standard"]
_FORMS = {"flat": (0.02, 0.0), "regularized": (0.02, 1e-8), "standard": (0.2, 0.0)}
_DEPTH = 1.0 - 2.75e-6  # of the second basin: makes the minima equal


class Function(ABC):
    """A function of n real variables.

    A subclass needs `__call__`; a closed `value_and_gradient` makes it fast.

    Attributes:
        dimension: Number n of coordinates.
        start: Where the papers start, length n.
        box: Lowest and highest coordinate of random starts.
        minimizers: Where F is lowest, as far as known.
        minimum: F there; None: unknown.
    """

    dimension: int
    start: Point
    box: tuple[float, float]
    minimizers: tuple[Point, ...] = ()
    minimum: float | None = None

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return F (...) at the points x (..., n), differentiable."""

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return F (...) and its gradient (..., n) at the points x (..., n)."""

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            value = self(x)
            return value.sum(), value

        gradient, value = torch.func.grad(total, has_aux=True)(x)
        return value, gradient

    @property
    def minimizer(self) -> Point | None:
        """The first of the minimizers, if one is known."""
        return self.minimizers[0] if self.minimizers else None

    def distance(self, x: Tensor) -> Tensor:
        """Return the distance (...) of points x (..., n) to the nearest minimizer."""
        if not self.minimizers:
            raise ValueError(f"{type(self).__name__} has no known minimizer")
        ways = [x - _vector(point, x) for point in self.minimizers]
        return torch.stack([way.norm(dim=-1) for way in ways]).amin(0)


class Quadratic(Function):
    r"""A bowl with its axes along the coordinates.

    .. math:: F = \tfrac12 \sum_i h_i x_i^2 + F_{min}

    Args:
        curvatures: Eigenvalues h_i > 0 of the Hessian; their number is n.
        minimum: F at the origin.
    """

    def __init__(self, curvatures: Sequence[float] = (1.0, 10.0), minimum: float = 0.0):
        if not curvatures or not all(0 < h < math.inf for h in curvatures):
            raise ValueError(f"curvatures must be in (0, inf), got {curvatures}")
        self.curvatures = tuple(map(float, curvatures))
        self.dimension = len(self.curvatures)
        self.minimum: float = minimum
        self.start, self.box = _alternating(3.0, -2.0, self.dimension), (-4.0, 4.0)
        self.minimizers = ((0.0,) * self.dimension,)

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        half = _vector(tuple(0.5 * h for h in self.curvatures), x)
        return x.square() @ half + self.minimum

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self(x), x * _vector(self.curvatures, x)


class Rosenbrock(Function):
    r"""A bent, flat valley.

    .. math:: F = \sum_{i<n} 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 + F_{min}

    Args:
        dimension: n >= 2.
        minimum: F at (1, ..., 1).
    """

    def __init__(self, dimension: int = 2, minimum: float = 0.0):
        at_least(2, dimension=dimension)
        self.dimension = dimension
        self.minimum: float = minimum
        self.start, self.box = _alternating(-1.2, 1.0, dimension), (-2.0, 2.0)
        self.minimizers = ((1.0,) * dimension,)

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._parts(x)[0]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value, bend, rest = self._parts(x)
        gradient = torch.zeros_like(x)
        gradient[..., :-1] = -400.0 * x[..., :-1] * bend - 2.0 * rest
        gradient[..., 1:] += 200.0 * bend
        return value, gradient

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bend, rest = x[..., 1:] - x[..., :-1].square(), 1.0 - x[..., :-1]
        terms = 100.0 * bend.square() + rest.square()
        ones = _vector((1.0,) * (self.dimension - 1), x)
        return terms @ ones + self.minimum, bend, rest


class Zakharov(Function):
    r"""A bowl with a narrow direction in which F grows as the fourth power.

    .. math:: F = \sum_i x_i^2 + s^2 + s^4, \qquad s = \tfrac12 \sum_{i=1}^n i\,x_i

    Args:
        dimension: n >= 1; the papers' is 10, where F at the start is 572680.3125.
    """

    minimum = 0.0

    def __init__(self, dimension: int = 10):
        at_least(1, dimension=dimension)
        self.dimension = dimension
        self.start, self.box = (1.0,) * dimension, (-5.0, 10.0)
        self.minimizers = ((0.0,) * dimension,)
        self._weights = tuple(0.5 * i for i in range(1, dimension + 1))

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        weights = _vector(self._weights, x)
        # s is written out for each power, for autograd to add the three gradients in
        # the order of the published run, whose digits in float32 depend on it.
        value = x.square().sum(-1) + (x * weights).sum(-1) ** 2
        return value + (x * weights).sum(-1) ** 4

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        weights, ones = _vector(self._weights, x), _vector((1.0,) * self.dimension, x)
        s = x @ weights
        s2 = s.square()
        value = x.square() @ ones + s2 + s2.square()
        along = s * (4.0 * s2 + 2.0)
        return value, torch.addcmul(x + x, along.unsqueeze(-1), weights)


class Ackley(Function):
    r"""A funnel full of local minima, with a kink at its lowest point.

    .. math:: F = -20 \exp\Big(-b \sqrt{|x|^2/n}\Big)
        - \exp\Big(\tfrac1n \sum_i \cos 2\pi x_i\Big) + 20 + e + c\,|x|^8

    The gradient at the kink is taken as zero.

    Args:
        form: "flat", the BBI paper's b = 0.02; "regularized", the ECDSep paper's,
            with c = 1e-8 besides; "standard" for the usual b = 0.2.
        dimension: n >= 1; the papers' is 2.
    """

    minimum = 0.0

    def __init__(self, form: Form = "flat", dimension: int = 2):
        one_of(_FORMS, form=form)
        self.form = form
        self.b, self.c = _FORMS[form]
        at_least(1, dimension=dimension)
        self.dimension = dimension
        self.start, self.box = _alternating(-4.0, 3.0, dimension), (-4.0, 4.0)
        self.minimizers = ((0.0,) * dimension,)

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._parts(x, math.tau * x)[0]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        angle = math.tau * x
        value, norm, radius, funnel, ripple = self._parts(x, angle)
        along = funnel * (self.b / self.dimension) / radius
        if self.c:
            along = along + 8.0 * self.c * norm * norm.square()
        turn = ripple * (math.tau / self.dimension)
        gradient = x * along.unsqueeze(-1)
        return value, torch.addcmul(gradient, torch.sin(angle), turn.unsqueeze(-1))

    def _parts(self, x: Tensor, angle: Tensor) -> tuple[Tensor, ...]:
        n, ones = self.dimension, _vector((1.0,) * self.dimension, x)
        norm = x.square() @ ones
        # Clamped, because at the kink both gradients would divide zero by zero.
        radius = (norm / n).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
        funnel, ripple = 20.0 * (-self.b * radius).exp(), (angle.cos() @ ones / n).exp()
        value = -funnel - ripple + 20.0 + math.e
        if self.c:
            value = value + self.c * norm.square().square()
        return value, norm, radius, funnel, ripple


class TwoBasins(Function):
    r"""Two wells of equal depth and different width, for the law of the basins.

    .. math:: F = -e^{-0.4 a} - w e^{-0.8 b} + 0.001\,a b + 1, \qquad
        a = |x - c_1|^2,\ b = |x - c_2|^2,\ w = 1 - 2.75 \cdot 10^{-6}

    with c1 = (-2, -2), c2 = (2, 2): both minima are 0 to 1e-8. A particle that mixes
    ends in them in the ratio of their phase space.

    Attributes:
        curvatures: Two eigenvalues h1 of the Hessian at c1, two h2 at c2.
        ideal_ratio: (Π h2 / Π h1)^½ = 1.9259, of basin 1 to basin 2.
    """

    dimension = 2
    start, box = (10.0, -10.0), (-11.0, 11.0)
    minimizers, minimum = ((-2.0, -2.0), (2.0, 2.0)), 0.0

    def __init__(self) -> None:
        h1 = _curvatures(0.8, 1.6 * _DEPTH, 0.8)
        h2 = _curvatures(1.6 * _DEPTH, 0.8, 0.4)
        self.curvatures = h1, h2
        self.ideal_ratio = math.sqrt(math.prod(h2) / math.prod(h1))

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._parts(x)[0]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        value, way1, way2, a, b, well1, well2 = self._parts(x)
        pull1 = torch.add(0.8 * well1, b, alpha=0.002)
        pull2 = torch.add(1.6 * well2, a, alpha=0.002)
        gradient = torch.addcmul(way1 * pull1.unsqueeze(-1), way2, pull2.unsqueeze(-1))
        return value, gradient

    def basin(self, x: Tensor) -> Tensor:
        """Return 1 or 2 where |√h (x - c)| < 1, basin 1 first, else 0; shape (...)."""
        inside1, inside2 = (
            (x - _vector(c, x)).square() @ _vector(h, x) < 1.0
            for c, h in zip(self.minimizers, self.curvatures, strict=True)
        )
        return torch.where(inside1, 1, 2 * inside2)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        ones = _vector((1.0, 1.0), x)
        way1, way2 = x + 2.0, x - 2.0
        a, b = way1.square() @ ones, way2.square() @ ones
        well1, well2 = torch.exp(-0.4 * a), _DEPTH * torch.exp(-0.8 * b)
        value = -well1 - well2 + 0.001 * a * b + 1.0
        return value, way1, way2, a, b, well1, well2


def _curvatures(own: float, other: float, k: float) -> tuple[float, float]:
    """Return the curvatures at a centre, across and along the line to the other one.

    A well exp(-k |x - c|²) curves by 2k at its own centre; |c1 - c2|² = 32.
    """
    base, tail = own + 0.002 * 32, other * math.exp(-k * 32)
    return base + tail, base + tail * (1 - 2 * k * 32)


def _alternating(odd: float, even: float, dimension: int) -> Point:
    return tuple((odd, even)[i % 2] for i in range(dimension))


def _vector(values: Point, like: Tensor) -> Tensor:
    """Return constants (n,) in the type and on the device of another tensor."""
    return _cached(values, like.dtype, like.device)


@lru_cache(maxsize=256)
def _cached(values: Point, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else no use once validation is over
        return torch.tensor(values, dtype=dtype, device=device)
