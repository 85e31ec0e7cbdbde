r"""The generating functions derived again, symbolically, and their signs checked.

Run ``python -m lightning_ecd.theory.derivation``.

A mode's second moments c = (C, J, P) obey, without the noise of other modes,
c_{t+1} = A c_t with A c = R c Rᵀ - τγ(αλ)² C (1, 1, 1), where c stands for the
symmetric matrix [[C, J], [J, P]] and R = [[1 - αλ, β], [-αλ, β]]. Hence
:math:`\sum_t z^t c_t = (1 - zA)^{-1} c_0`: from pure noise (1, 1, 1) its first entry
is U's term over (αλ)² γ τ1, from pure signal (1, 0, 0) it is V's over c_k.

Legend: z, argument; a = αλ; b = β; g = γτ2.
"""

from typing import NamedTuple

import numpy as np
import sympy
from sympy import Expr, Matrix, Symbol

z, a, b, g = (Symbol(name, real=True) for name in ("z", "a", "b", "g"))


class Derived(NamedTuple):
    """What the recursion of one mode implies.

    Attributes:
        recursion: A, (3, 3), on (C, J, P).
        denominator: S(z), the determinant of 1 - zA over (1 - bz).
        noise: Numerator over S of the response to noise: 1 + bz.
        signal: Numerator over S of the signal.
    """

    recursion: Matrix
    denominator: Expr
    noise: Expr
    signal: Expr


def derive() -> Derived:
    """Return the rational functions of one mode, from its recursion."""
    C, J, P = sympy.symbols("C J P")
    R = Matrix([[1 - a, b], [-a, b]])
    moments = R * Matrix([[C, J], [J, P]]) * R.T
    damped = moments - g * a**2 * C * sympy.ones(2, 2)
    after = [damped[0, 0], damped[0, 1], damped[1, 1]]
    A = Matrix(3, 3, lambda i, j: sympy.expand(after[i]).coeff((C, J, P)[j]))
    resolvent = (sympy.eye(3) - z * A).inv()
    found = []
    for start in (Matrix([1, 1, 1]), Matrix([1, 0, 0])):
        top, bottom = sympy.fraction(sympy.cancel((resolvent * start)[0]))
        scale = bottom.subs(z, 0)  # S(0) = 1
        found.append((sympy.factor(top / scale), sympy.expand(bottom / scale)))
    (noise, S), (signal, same) = found
    assert sympy.expand(S - same) == 0
    return Derived(A, S, noise, signal)


def published() -> tuple[Expr, Expr, Expr]:
    """Return S and the numerators of U and V as the paper has them."""
    S = (1 - z) * (1 - b * z) * (1 - b**2 * z)
    S += 2 * a * z * (1 + b) * (1 - b * z)
    S += a**2 * z * (g * (1 + b * z) - (1 - b * z))
    return S, 1 + b * z, 2 * a * b * z + (1 - b * z) * (1 - b**2 * z)


def slope_numerator() -> Expr:
    r"""Return R of :math:`\frac{d}{dz}\big(z(1 + bz)/S\big) = R/S^2`."""
    S, noise, _ = published()
    return sympy.expand(noise_slope(z * noise, S))


def noise_slope(top: Expr, S: Expr) -> Expr:
    """Return the numerator of the derivative of top/S by z."""
    return sympy.diff(top, z) * S - top * sympy.diff(S, z)


class Signs(NamedTuple):
    """Least values on a grid of the region -1 < b < 1, 0 < a < 2 (1 + b), 0 < z < 1.

    Attributes:
        denominator: Of S, for g in [0, 1].
        slope: Of `slope_numerator`.
        points: Of the grid.
    """

    denominator: float
    slope: float
    points: int


def signs(size: int = 60) -> Signs:
    """Return the least S and slope on a grid; positive ones support the theory."""
    S, _, _ = published()
    S_of = sympy.lambdify((z, a, b, g), S, "numpy")
    R_of = sympy.lambdify((z, a, b, g), slope_numerator(), "numpy")
    inner = (np.arange(size) + 0.5) / size
    B = 2 * inner[:, None, None] - 1
    A = 2 * (1 + B) * inner[:, None]
    Z = inner
    lowest, slopes = [], []
    for G in (0.0, 0.5, 1.0):
        lowest.append(S_of(Z, A, B, G).min())
        slopes.append(np.min(R_of(Z, A, B, G)))
    return Signs(float(min(lowest)), float(min(slopes)), 3 * size**3)


def main() -> None:
    """Derive, compare, check signs, print."""
    derived, (S, noise, signal) = derive(), published()
    print("recursion of (C, J, P):")
    sympy.pprint(derived.recursion)
    for name, found, expected in (
        ("S", derived.denominator, S),
        ("U", derived.noise, noise),
        ("V", derived.signal, signal),
    ):
        same = sympy.expand(found - expected) == 0
        print(f"{name} = {sympy.factor(found)}: {'as' if same else 'NOT as'} published")
    print(f"d/dz(z U): {sympy.collect(slope_numerator(), z)} over S^2")
    print(signs())


if __name__ == "__main__":
    main()
