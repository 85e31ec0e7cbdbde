"""Problems that studies of the theory are about."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lightning_ecd.theory.kernel import load_kernel
from lightning_ecd.theory.spectrum import (
    Spectrum,
    from_kernel,
    from_power_law,
    synthetic_kernel,
)


class Problem(ABC):
    """Least squares with a spectrum, and with a kernel where one is needed."""

    @abstractmethod
    def spectrum(self) -> Spectrum:
        """Return the spectrum of the kernel with λ_max/N = 1."""

    @abstractmethod
    def kernel(self) -> tuple[Tensor, Tensor]:
        """Return that kernel (N, N) and the output error (N,)."""


class PowerLaws(Problem):
    """Power laws: see `lightning_ecd.theory.from_power_law`.

    Args:
        nu: ν > 0.
        kappa: κ > 0.
        samples: N >= 1.
        lambda_min: In [0, 1).
        clamp: c_1, ..., c_clamp are all made c_clamp; 0: none.
        seed: Of the eigenvectors, where a kernel is needed.
    """

    def __init__(
        self,
        nu: float = 1.5,
        kappa: float = 0.75,
        samples: int = 1000,
        lambda_min: float = 0.0,
        clamp: int = 0,
        seed: int = 0,
    ):
        found = from_power_law(nu, kappa, samples, lambda_min)
        self._spectrum = found.clamped(clamp) if clamp else found
        self.seed = seed

    def spectrum(self) -> Spectrum:  # noqa: D102
        return self._spectrum

    def kernel(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return synthetic_kernel(self._spectrum, self.seed)


class KernelFile(Problem):
    """A kernel that `lightning_ecd.theory.save_kernel` wrote; f_0 = 0.

    Args:
        file: Its path. Targets are scaled to mean 0 and variance 1.
    """

    def __init__(self, file: str):
        K, y = load_kernel(file)
        d = (y - y.mean()) / y.std()
        self._given = Given(K, d)

    def spectrum(self) -> Spectrum:  # noqa: D102
        return self._given.spectrum()

    def kernel(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._given.kernel()


class Given(Problem):
    """A kernel and an output error.

    Args:
        K: Shape (N, N).
        d: Shape (N,).
    """

    def __init__(self, K: Tensor, d: Tensor):
        self._K, self._d = K.double(), d.double()
        self._found: Spectrum | None = None

    def spectrum(self) -> Spectrum:  # noqa: D102
        if self._found is None:
            self._found, _ = from_kernel(self._K, self._d)
        return self._found

    def kernel(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self._K / self.spectrum().scale, self._d


def grid(low: float, high: float, count: int) -> Tensor:
    """Return equally spaced numbers, both ends included, (count,)."""
    return torch.linspace(low, high, count, dtype=torch.float64)
