r"""Hamiltonians as data: each is a few scalar formulas.

========  ==================  =======================================
symbol    variable            meaning
========  ==================  =======================================
V         ``V``               loss + L2 term - f_min, > 0
E         ``E``               conserved energy, in units of the loss
p²        ``p2``              squared norm of the momentum
========  ==================  =======================================

The formulas use operators only: they take floats, 0-d tensors on an accelerator and
columns of many runs alike.
"""

from dataclasses import dataclass
from typing import Protocol

from lightning_ecd.optimizers.base import Number


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
        return (E / V) ** self.eta - self.s

    def kick(self, V: Number, E: Number) -> Number:
        """η/V."""
        return self.eta / V

    def drift(self, V: Number, E: Number, p2: Number) -> Number:
        """2/(s + p²)."""
        return 2 / (self.s + p2)

    def energy(self, V: Number, p2: Number) -> Number:
        """V (s + p²)^(1/η)."""
        return V * (self.s + p2) ** (1 / self.eta)
