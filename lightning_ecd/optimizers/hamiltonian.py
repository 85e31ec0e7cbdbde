r"""Hamiltonians as data: each is a few scalar formulas.

========  ==================  =======================================
symbol    variable            meaning
========  ==================  =======================================
V         ``V``               loss + L2 term - f_min, > 0
E         ``E``               conserved energy, in units of the loss
p²        ``p2``              size of the momentum, squared
========  ==================  =======================================

The formulas use operators only: they take floats, 0-d tensors on an accelerator and
columns of many runs alike.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lightning_ecd.optimizers.base import Number

#: p² is cut off here: beyond, the particle is too heavy to move anyway.
_HEAVY = 1e280


class Hamiltonian(Protocol):
    """Energy surface and equations of motion of one particle."""

    def initial(self, V: Number, extra: Number) -> Number:
        """Return E for a start at `V` with `extra` energy."""

    def kinetic(self, V: Number, E: Number) -> Number:
        """Return p² on the energy shell."""

    def kick(self, V: Number, E: Number) -> Number:
        """Return k in dp/dt = -k ∇V."""

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """Return d in dθ/dt = d p."""

    def energy(self, V: Number, p2: Number) -> Number:
        """Return the energy of a state, in units of the loss."""


@dataclass(frozen=True, slots=True)
class BornInfeld:
    r"""Relativistic particle: :math:`H = \sqrt{V (V + p^2)}`, speed at most √V."""

    def initial(self, V: Number, extra: Number) -> Number:
        """E = V(0) + δE."""
        return V + extra

    def kinetic(self, V: Number, E: Number) -> Number:
        """V ((E/V)² - 1)."""
        return V * ((E / V) ** 2 - 1)

    def kick(self, V: Number, E: Number) -> Number:
        """½ (V/E + E/V)."""
        return 0.5 * (V / E + E / V)

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """V/E."""
        return V / E

    def energy(self, V: Number, p2: Number) -> Number:
        """sqrt(V (V + p²))."""
        return (V * (V + p2)) ** 0.5


@dataclass(frozen=True, slots=True)
class Separable:
    r"""Separable particle: :math:`\log H = \log(s + p^2) + \eta \log V`.

    E stands for :math:`e^{E/\eta}` of the paper. In units of the loss it neither
    overflows nor vanishes, however large η or small V.

    Attributes:
        eta: Concentration exponent η.
        s: Regularisation, 1 or 0; with s = 0 there is no state of rest.
    """

    eta: float
    s: float

    def initial(self, V: Number, extra: Number) -> Number:
        """V(0) (s + δE)^(1/η)."""
        return V * (self.s + extra) ** (1 / self.eta)

    def kinetic(self, V: Number, E: Number) -> Number:
        """(E/V)^η - s."""
        return _power(E / V, self.eta) - self.s

    def kick(self, V: Number, E: Number) -> Number:
        """η/V."""
        return self.eta / V

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """2/(s + p²)."""
        return 2 / (self.s + p2)

    def energy(self, V: Number, p2: Number) -> Number:
        """V (s + p²)^(1/η)."""
        return V * (self.s + p2) ** (1 / self.eta)


@dataclass(frozen=True, slots=True)
class Absolute(Separable):
    r"""Separable particle of 1-norm: :math:`H = V^\eta (s + \sum |p_i|)`.

    The formulas take A = Σ|p_i| where the others take p²; θ moves by its drift times
    the signs of p.
    """

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """1/(s + A)."""
        return 1 / (self.s + p2)


@dataclass(frozen=True, slots=True)
class Isokinetic:
    r"""Particle of constant |u| = 1 whose direction is pushed downhill.

    .. math:: \dot u = -k (1 - u u^T) \nabla V, \qquad \dot\theta = V^\gamma u

    leaves the measure :math:`V^{-\eta n/2}` unchanged.

    Attributes:
        eta: Concentration exponent η.
        n: Number of parameters.
        gamma: Slowing γ: 0 keeps the speed, larger values slow where V is small.
        exponent: Of V in the kick; γ - 1 preserves the measure.
    """

    eta: float
    n: int
    gamma: float
    exponent: float

    def initial(self, V: Number, extra: Number) -> Number:
        """1: the squared length of u is what is conserved."""
        return V / V

    def kinetic(self, V: Number, E: Number) -> Number:
        """1."""
        return V / V

    def kick(self, V: Number, E: Number) -> Number:
        """(η n - 2 γ)/(2 (n - 1)) V^exponent; a single parameter cannot turn."""
        strength = (self.eta * self.n - 2 * self.gamma) / (2 * max(self.n - 1, 1))
        return strength * _power(V, self.exponent)

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """V^γ."""
        return _power(V, self.gamma)

    def energy(self, V: Number, p2: Number) -> Number:
        """|u|."""
        return p2**0.5


def _power(base: Number, exponent: float) -> Number:
    """Return a power that does not overflow."""
    if isinstance(base, Tensor):
        return (base**exponent).clamp(max=_HEAVY)
    try:
        return min(base**exponent, _HEAVY)
    except OverflowError:
        return _HEAVY
