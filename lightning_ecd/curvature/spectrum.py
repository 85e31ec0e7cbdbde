"""Eigenvalues of a symmetric matrix that is known by its products alone.

Legend: A, the matrix (n, n); `product`, rows (k, n) -> rows times A, (k, n).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_ecd.checks import at_least
from lightning_ecd.randomness import normals

Product = Callable[[Tensor], Tensor]

#: Separate the draws of this file from every other use of a seed.
_STARTS, _RESTARTS, _BLOCK = 0x51A7, 0x51A8, 0x51A9


@dataclass(frozen=True)
class Spectrum:
    """A spectrum as weighted eigenvalues, once per random probe.

    Args:
        nodes: Eigenvalues, (k, m), float64.
        weights: Their shares of the spectrum, (k, m); every row sums to 1.
        size: Of the matrix, n.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    @classmethod
    def exact(cls, A: Tensor) -> "Spectrum":
        """Return the spectrum of a whole symmetric matrix, (n, n)."""
        nodes = torch.linalg.eigvalsh(A).double().cpu()[None]
        return cls(nodes, torch.full_like(nodes, 1 / len(A)), len(A))

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Return the spectral mean of values at the nodes, (k, m), and its error.

        The error is the standard error over the probes (nan for a single one).
        """
        return mean_and_error((self.weights * values).sum(1))

    def trace(self) -> tuple[float, float]:
        """Return the trace and its standard error."""
        value, error = self.mean(self.nodes)
        return self.size * value, self.size * error

    def share(self, low: float, high: float) -> tuple[float, float]:
        """Return the share of eigenvalues in (low, high), and its standard error."""
        return self.mean(((self.nodes > low) & (self.nodes < high)).double())

    def share_bounds(self, low: float, high: float) -> tuple[float, float]:
        r"""Return the least and the most share that can lie in (low, high).

        Of a probe's measure the weights before a node bound what lies below it, those
        up to the node what lies up to it (Chebyshev, Markov, Stieltjes). Between nodes
        further apart than (low, high) nothing is known: more steps narrow it down. An
        exact spectrum has equal bounds. Means over the probes, without their error.

        Args:
            low: Lower end.
            high: Upper end.

        Reference:
            N. I. Akhiezer, "The classical moment problem", 1965.
        """
        if self.nodes.shape[1] == self.size:
            share = self.share(low, high)[0]
            return share, share
        ends = self.nodes.new_tensor([low, high]).expand(len(self.nodes), 2)
        m = self.nodes.shape[1]
        total = torch.cat([torch.zeros(len(ends), 1), self.weights.cumsum(1)], 1)
        # mass in (-inf, end): the least, the most
        first = torch.searchsorted(self.nodes, ends.contiguous(), right=True)
        last = torch.searchsorted(self.nodes, ends.contiguous())
        least = total.gather(1, (first - 1).clamp(min=0))
        most = total.gather(1, (last + 1).clamp(max=m))
        inside = (least[:, 1] - most[:, 0]).clamp(min=0)
        return inside.mean().item(), (most[:, 1] - least[:, 0]).mean().item()

    def width(self) -> float:
        """Return the default broadening: 10^-2.5 of half the range."""
        half = (self.nodes.max() - self.nodes.min()).item() / 2
        return 10**-2.5 * half or 1e-12

    def density(
        self, grid: Tensor, width: float | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Return the density broadened by Gaussians, and its standard error.

        .. math:: \phi(t) = \frac{1}{k} \sum_{j,i} w_{ji}\, N(t; \lambda_{ji}, width^2)

        Args:
            grid: Where, (T,).
            width: Standard deviation of the Gaussians; default: see `width`.

        Returns:
            Density and error, both (T,), float64.
        """
        width = width or self.width()
        rows = []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            total = torch.zeros(len(grid), dtype=torch.float64)
            for at, w in zip(nodes.split(4096), weights.split(4096), strict=True):
                z = (grid.double()[:, None] - at) / width
                total += (-0.5 * z * z).exp() @ w
            rows.append(total / (width * (2 * torch.pi) ** 0.5))
        found = torch.stack(rows)
        error = (
            found.std(0) / len(rows) ** 0.5 if len(rows) > 1 else found[0] * torch.nan
        )
        return found.mean(0), error


def mean_and_error(samples: Tensor) -> tuple[float, float]:
    """Return the mean of samples, (k,), and its standard error; nan for k = 1."""
    k = len(samples)
    error = samples.double().std().item() / k**0.5 if k > 1 else float("nan")
    return samples.double().mean().item(), error


def lanczos(
    product: Product, start: Tensor, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Return tridiagonal matrices of A on the Krylov spaces of k vectors.

    Every new vector is made orthogonal to all former ones, twice; without it rounding
    brings found eigenvalues back as ghosts. Where a space is exhausted, it goes on
    from a random vector, which the start has no part in. The k runs go side by side.

    Args:
        product: Of A.
        start: Shape (k, n).
        steps: m, at most n.
        seed: Of the vectors where a space is exhausted.

    Returns:
        T, (k, m, m), float64, and the bases, (k, m, n).

    Reference:
        C. C. Paige, "Practical use of the symmetric Lanczos process with
        re-orthogonalization", BIT 1970.
    """
    k, n = start.shape
    m = min(steps, n)
    Q = start.new_zeros(k, m, n)
    T = torch.zeros(k, m, m, dtype=torch.float64)

    def project(v: Tensor, count: int) -> Tensor:
        for _ in range(2):
            known = Q[:, :count]
            v = v - (known.mT @ (known @ v[:, :, None]))[:, :, 0]
        return v

    q = start / start.norm(dim=1, keepdim=True)
    for i in range(m):
        Q[:, i] = q
        v = product(q)
        scale = v.norm(dim=1)
        T[:, i, i] = (q.double() * v.double()).sum(1).cpu()
        if i + 1 == m:
            break
        v = project(v, i + 1)
        beta = v.norm(dim=1)
        spent = beta <= 10 * torch.finfo(v.dtype).eps * scale
        if spent.any():
            fresh = project(normals(v, seed, _RESTARTS, i), i + 1)
            v = torch.where(spent[:, None], fresh, v)
        q = v / v.norm(dim=1, keepdim=True)
        beta = beta.masked_fill(spent, 0).double().cpu()
        T[:, i, i + 1] = T[:, i + 1, i] = beta
    return T, Q


def lanczos_quadrature(
    product: Product,
    like: Tensor,
    probes: int = 10,
    steps: int = 90,
    seed: int = 0,
    memory: float = 2**30,
) -> Spectrum:
    r"""Estimate the spectrum by stochastic Lanczos quadrature.

    Of a random unit vector v the measure :math:`\sum_i (v^T u_i)^2 \delta_{\lambda_i}`
    has the spectral density as its mean. m steps of Lanczos give its Gauss quadrature:
    nodes are T's eigenvalues, weights the squared first entries of T's eigenvectors.

    Args:
        product: Of A.
        like: A vector of A's size and type, (n,).
        probes: Random vectors, k.
        steps: Of Lanczos, m.
        seed: Of the vectors.
        memory: Bytes that the bases may take; fewer probes go side by side then.

    Reference:
        B. Ghorbani, S. Krishnan, Y. Xiao, "An investigation into neural net
        optimization via Hessian eigenvalue density", ICML 2019, arXiv 1901.10159;
        Z. Yao et al., "PyHessian", arXiv 1912.07145.
    """
    at_least(1, probes=probes, steps=steps)
    n, m = len(like), min(steps, len(like))
    side = side_by_side(like, probes, steps, memory)
    nodes, weights = [], []
    for first in range(0, probes, side):
        start = torch.stack(
            [normals(like, seed, _STARTS, i) for i in range(first, probes)[:side]]
        )
        T, _ = lanczos(product, start, m, seed)
        values, vectors = torch.linalg.eigh(T)
        nodes.append(values)
        weights.append(vectors[:, 0].square())
    return Spectrum(torch.cat(nodes), torch.cat(weights), n)


def side_by_side(like: Tensor, probes: int, steps: int, memory: float = 2**30) -> int:
    """Return how many probes `lanczos_quadrature` takes at once: see there."""
    bytes_of_one = min(steps, len(like)) * len(like) * like.element_size()
    return max(1, min(probes, int(memory / bytes_of_one)))


def top_eigenpairs(
    product: Product,
    like: Tensor,
    k: int = 5,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    tolerance: float = 1e-3,
    rounds: int = 100,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the k outermost eigenpairs, found as a block.

    Rayleigh-Ritz on a growing orthonormal basis: every round adds the residuals
    :math:`A u - \theta u` of the k wanted pairs, so the basis spans a block Krylov
    space, multiple eigenvalues included. When it is long, it restarts from its 3 k
    best Ritz vectors.

    Args:
        product: Of A.
        like: A vector of A's size and type, (n,).
        k: Pairs, at most n.
        which: The largest, the smallest, or the largest in magnitude.
        tolerance: Of the residuals' norms, relative to the largest eigenvalue found.
        rounds: The most products with k vectors.
        seed: Of the start.

    Returns:
        Eigenvalues (k,) in float64, eigenvectors (k, n), and the norms of the
        residuals (k,): an eigenvalue of A is no further from a found one than that.

    Reference:
        E. R. Davidson, "The iterative calculation of a few of the lowest eigenvalues",
        J. Comput. Phys. 1975 (here without preconditioner); K. Wu, H. Simon,
        "Thick-restart Lanczos method", SIAM J. Matrix Anal. Appl. 2000.
    """
    n = len(like)
    if not 1 <= k <= n:
        raise ValueError(f"k must be in [1, {n}], got {k}")
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f"which must be largest, smallest or magnitude, got {which!r}")
    Q = like.new_zeros(0, n)
    AQ = Q
    new = torch.stack([normals(like, seed, _BLOCK, i) for i in range(k)])
    while True:
        new = _orthonormal(new, Q)
        if len(new):
            Q, AQ = torch.cat([Q, new]), torch.cat([AQ, product(new)])
        T = (Q @ AQ.T).double()
        theta, S = torch.linalg.eigh((T + T.T) / 2)
        rank = {"largest": -theta, "smallest": theta, "magnitude": -theta.abs()}[which]
        order = rank.argsort()
        theta, S = theta[order], S[:, order].to(Q)
        U, AU = S[:, :k].T @ Q, S[:, :k].T @ AQ
        residual = AU - theta[:k, None].to(Q) * U
        norms = residual.norm(dim=1).double()
        rounds -= 1
        done = bool((norms <= tolerance * theta.abs().max()).all())
        if done or rounds <= 0 or not len(new) or len(Q) >= n:
            return theta[:k].cpu(), U, norms.cpu()
        if len(Q) + k > max(10 * k, 20):
            keep = S[:, : 3 * k].T
            Q, AQ = keep @ Q, keep @ AQ
        new = residual


def _orthonormal(new: Tensor, Q: Tensor) -> Tensor:
    """Return an orthonormal basis of what rows add to an orthonormal basis Q."""
    scale = new.norm(dim=1, keepdim=True)
    new = new / scale.clamp(min=torch.finfo(new.dtype).tiny)
    for _ in range(2):
        new = new - (new @ Q.T) @ Q
        basis, R = torch.linalg.qr(new.T)
        sound = R.diagonal().abs() > 1e3 * torch.finfo(new.dtype).eps
        new = basis.T[sound]
    return new
