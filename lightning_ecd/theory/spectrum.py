r"""Spectra of least-squares problems: what the theory of mini-batch SGD starts from.

Legend: K, kernel (N, N); λ, eigenvalues of K/N; c, squared coefficients of the output
error d_0 = f_0 - y on K's eigenvectors, sum c = |d_0|² = 2 N L_0; N, `samples`;
ν, κ, exponents of λ_k ~ Λ k^-ν and of the tail sum_{l>=k} c_l ~ Q k^-κ; ζ = κ/ν.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_ecd.curvature import lanczos, lanczos_quadrature, top_eigenpairs

Product = Callable[[Tensor], Tensor]

#: First and last positions, from 0, of the fits of ν and of κ.
WINDOWS = ((5, 300), (10, 310))


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and coefficients of a least-squares problem, float64.

    A row may stand for many eigenvalues, or for none: where the two spectral measures
    were found apart, some rows carry the multiplicity and others the coefficients.

    Args:
        eigenvalues: λ >= 0, shape (M,), largest first.
        coefficients: c >= 0, shape (M,).
        samples: N.
        multiplicity: Eigenvalues that a row stands for, shape (M,); None: 1.
        scale: What the kernel's λ_max was before it became 1.
    """

    eigenvalues: Tensor
    coefficients: Tensor
    samples: int
    multiplicity: Tensor | None = None
    scale: float = 1.0

    @property
    def counts(self) -> Tensor:
        """Eigenvalues that every row stands for, shape (M,)."""
        if self.multiplicity is None:
            return torch.ones_like(self.eigenvalues)
        return self.multiplicity

    @property
    def largest(self) -> float:
        """The largest eigenvalue, λ_max."""
        return self.eigenvalues.max().item()

    @property
    def loss(self) -> float:
        """The loss before the first step, L_0."""
        return self.coefficients.sum().item() / (2 * self.samples)

    def to(self, device: torch.device | str) -> "Spectrum":
        """Return the spectrum on a device."""
        kept = self.multiplicity
        return replace(
            self,
            eigenvalues=self.eigenvalues.to(device),
            coefficients=self.coefficients.to(device),
            multiplicity=None if kept is None else kept.to(device),
        )

    def normalized(self) -> "Spectrum":
        """Return the spectrum divided by its largest eigenvalue."""
        top = self.largest
        return replace(self, eigenvalues=self.eigenvalues / top, scale=self.scale * top)

    def clamped(self, k: int) -> "Spectrum":
        """Return the spectrum with c_1, ..., c_k all equal to c_k."""
        c = self.coefficients.clone()
        c[:k] = c[k - 1]
        return replace(self, coefficients=c)

    def binned(self, exact: int = 1000, per_octave: int = 100) -> "Spectrum":
        """Return the spectrum with its tail gathered in bins that grow like k.

        A bin's eigenvalue is the mean of its own, weighted with their squares, which
        keeps the noise that it makes; sums of c are kept exactly.

        Args:
            exact: Rows at the front that stay as they are.
            per_octave: Bins from k to 2 k.
        """
        size = len(self.eigenvalues)
        if size <= exact:
            return self
        octaves = torch.tensor(size / exact, dtype=torch.float64).log2()
        bins = int(octaves * per_octave) + 2
        ends = torch.logspace(0, 1, bins, base=size / exact, dtype=torch.float64)
        ends = (exact * ends).round().long().unique()
        ends[-1] = size
        like = self.eigenvalues
        label = torch.arange(size, device=like.device)
        later = exact + torch.bucketize(label, ends.to(like.device), right=True) - 1
        label = torch.where(label < exact, label, later)
        rows = int(label[-1]) + 1

        def total(values: Tensor) -> Tensor:
            return like.new_zeros(rows).index_add_(0, label, values)

        m, squares = self.counts, like**2 * self.counts
        return replace(
            self,
            eigenvalues=total(squares * like) / total(squares),
            coefficients=total(self.coefficients),
            multiplicity=total(m),
        )


def from_kernel(
    K: Tensor, d: Tensor, normalize: bool = True
) -> tuple[Spectrum, Tensor]:
    """Return the spectrum of a kernel and an output error, and the eigenvectors.

    Args:
        K: Symmetric, shape (N, N).
        d: f_0 - y, shape (N,).
        normalize: Divide by the largest eigenvalue.

    Returns:
        The spectrum, and U (N, N) whose columns are the eigenvectors in its order.
    """
    N = len(d)
    values, U = torch.linalg.eigh(K.double() / N)
    values, U = values.flip(0).clamp_min(0), U.flip(1)
    found = Spectrum(values, (U.T @ d.double()).square(), N)
    return (found.normalized() if normalize else found), U


def from_power_law(
    nu: float, kappa: float, samples: int, lambda_min: float = 0.0
) -> Spectrum:
    r"""Return the power laws of the paper's synthetic problem.

    .. math::
        \lambda_k = \lambda_{min} + (1 - \lambda_{min}) k^{-\nu}, \qquad
        c_k \propto k^{-(\kappa + 1)}, \quad \sum_k c_k = 1

    Args:
        nu: ν > 0.
        kappa: κ > 0.
        samples: N >= 1.
        lambda_min: In [0, 1).
    """
    for name, value in {"nu": nu, "kappa": kappa, "samples": samples}.items():
        if not value > 0:
            raise ValueError(f"{name} must lie in (0, inf), got {value}")
    if not 0 <= lambda_min < 1:
        raise ValueError(f"lambda_min must lie in [0, 1), got {lambda_min}")
    k = torch.arange(1, samples + 1, dtype=torch.float64)
    c = k ** -(kappa + 1)
    return Spectrum(lambda_min + (1 - lambda_min) * k**-nu, c / c.sum(), samples)


def synthetic_kernel(spectrum: Spectrum, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a kernel (N, N) and an output error (N,) that have a spectrum.

    The eigenvectors are uniformly random.

    Args:
        spectrum: With one eigenvalue in every row.
        seed: Of the eigenvectors.
    """
    N = spectrum.samples
    if len(spectrum.eigenvalues) != N or spectrum.multiplicity is not None:
        raise ValueError(f"the spectrum must have {N} rows of one eigenvalue each")
    draws = torch.Generator().manual_seed(seed)
    G = torch.randn(N, N, generator=draws, dtype=torch.float64)
    U, R = torch.linalg.qr(G)
    U = U * R.diagonal().sign()
    d = U @ spectrum.coefficients.sqrt()
    return N * (U * spectrum.eigenvalues) @ U.T, d


def from_lanczos(
    product: Product,
    d: Tensor,
    top: int = 100,
    steps: int = 80,
    probes: int = 4,
    seed: int = 0,
    normalize: bool = True,
    tolerance: float = 1e-6,
) -> Spectrum:
    r"""Estimate the two spectral measures from products with the kernel alone.

    The `top` largest eigenvalues are found one by one; the density of the others by
    stochastic Lanczos quadrature of the deflated kernel; the measure of d by Lanczos
    from d, whose Gauss quadrature matches 2 m moments.

    Args:
        product: Rows (k, N) -> rows times K, (k, N).
        d: f_0 - y, shape (N,).
        top: Eigenvalues found one by one.
        steps: Of Lanczos, m.
        probes: Random vectors of the quadrature.
        seed: Of the random vectors.
        normalize: Divide by the largest eigenvalue.
        tolerance: Of the residuals of the eigenvectors found one by one, relative to
            the largest eigenvalue; an eigenvalue's error is about its square.

    Returns:
        A spectrum whose first rows carry multiplicities, the last ones coefficients.
    """
    N = len(d)
    d = d.double()

    def scaled(rows: Tensor) -> Tensor:
        return product(rows) / N

    k = min(top, N)
    values, U, _ = top_eigenpairs(scaled, d, k, tolerance=tolerance, seed=seed)
    nodes, counts = [values.to(d)], [torch.ones_like(d[:k])]
    if k < N:

        def rest(rows: Tensor) -> Tensor:
            rows = rows - (rows @ U.T) @ U
            rows = scaled(rows)
            return rows - (rows @ U.T) @ U

        # k of its eigenvalues are 0, which make no noise
        found = lanczos_quadrature(rest, d, probes, steps, seed)
        nodes.append(found.nodes.flatten().to(d))
        counts.append(N / len(found.nodes) * found.weights.flatten().to(d))
    T, _ = lanczos(scaled, d[None], steps, seed)
    theta, S = torch.linalg.eigh(T[0])
    nodes.append(theta.to(d))
    many = torch.cat(counts)
    c = d.square().sum() * S[0].square().to(d)
    spectrum = Spectrum(
        torch.cat(nodes).clamp_min(0),
        torch.cat([torch.zeros_like(many), c]),
        N,
        torch.cat([many, torch.zeros_like(c)]),
    )
    return spectrum.normalized() if normalize else spectrum


class Fit(NamedTuple):
    """A power law a k^-p through a curve, fitted in windows.

    Attributes:
        exponent: p, the mean over the windows.
        exponent_error: Its standard deviation over the windows.
        amplitude: a, from the mean intercept.
        intercept_error: Standard deviation of log a over the windows.
    """

    exponent: float
    exponent_error: float
    amplitude: float
    intercept_error: float


def fit_power_law(
    values: Tensor,
    left: int = 10,
    right: int = 1000,
    windows: int = 3,
    points: int = 50,
    index_from: int = 1,
) -> Fit:
    """Fit log values against log k by least squares in consecutive windows.

    Args:
        values: Positive, shape (N,), for k = 1, ..., N.
        left: First position, from 0.
        right: Last position, at most N - 1.
        windows: Of equal length, side by side.
        points: Equally spaced positions in a window, cut to integers.
        index_from: k of the first value; 0 reproduces the released code.
    """
    if not 0 <= left < right < len(values):
        raise ValueError(
            f"left and right must satisfy 0 <= left < right < {len(values)}, got "
            f"{left} and {right}"
        )
    if left + index_from < 1:
        raise ValueError(f"left must be at least {1 - index_from}, got {left}")
    ends = torch.linspace(left, right, windows + 1, dtype=torch.float64)
    slopes, intercepts = [], []
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        at = torch.linspace(low, high, points, dtype=torch.float64).long()
        x = (at + index_from).double().log()
        y = values.detach().cpu()[at].double().log()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        slopes.append(slope)
        intercepts.append(y.mean() - slope * x.mean())
    slope, intercept = torch.stack(slopes), torch.stack(intercepts)
    return Fit(
        -slope.mean().item(),
        slope.std(correction=0).item(),
        intercept.mean().exp().item(),
        intercept.std(correction=0).item(),
    )


def tail_sums(values: Tensor) -> Tensor:
    """Return sum_{l >= k} of values, shape (N,) for k = 1, ..., N."""
    return values.flip(0).cumsum(0).flip(0)
