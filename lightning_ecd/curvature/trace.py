"""Traces and diagonals of a matrix that is known by its products alone.

Legend: A, the matrix (n, n); `product`, rows (k, n) -> rows times A, (k, n).
"""

import torch
from torch import Tensor

from lightning_ecd.checks import at_least
from lightning_ecd.curvature.spectrum import Product, mean_and_error
from lightning_ecd.randomness import uniforms

#: Separate the draws of this file from every other use of a seed.
_SIGNS, _SKETCH = 0x7ACE, 0x7ACF


def signs(like: Tensor, count: int, seed: int, stream: int = _SIGNS) -> Tensor:
    """Return random signs, (count, n), row i a function of (seed, i)."""
    draws = [uniforms(like, seed, stream, i) for i in range(count)]
    return torch.stack(draws).sub_(0.5).sign_()


def hutchinson_trace(
    product: Product, like: Tensor, probes: int = 10, seed: int = 0
) -> tuple[float, float]:
    r"""Return the trace and its standard error: :math:`tr A = E[z^T A z]`.

    Args:
        product: Of A.
        like: A vector of A's size and type, (n,).
        probes: Vectors z of random signs, at least 1.
        seed: Of the vectors.

    Reference:
        M. F. Hutchinson, "A stochastic estimator of the trace of the influence
        matrix", Commun. Stat. 1990.
    """
    at_least(1, probes=probes)
    z = signs(like, probes, seed)
    return mean_and_error((z * product(z)).sum(1))


def hutchpp_trace(
    product: Product, like: Tensor, products: int = 30, seed: int = 0
) -> tuple[float, float]:
    r"""Return the trace by Hutch++ and its standard error.

    With Q a basis of the range of A S, S a third of the vectors, the trace is exact on
    Q and estimated on the rest:

    .. math:: tr A = tr(Q^T A Q) + E[z^T P A P z], \qquad P = I - Q Q^T

    Its error falls as 1/products where Hutchinson's falls as 1/√products; a matrix of
    rank below products/3 is exact.

    Args:
        product: Of A.
        like: A vector of A's size and type, (n,).
        products: With vectors in all, at least 3; a third of them each for the
            sketch, for Q and for the rest.
        seed: Of the vectors.

    Reference:
        R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, "Hutch++: optimal stochastic
        trace estimation", SOSA 2021, arXiv 2010.09649.
    """
    at_least(3, products=products)
    third = min(products // 3, len(like))
    Q = torch.linalg.qr(product(signs(like, third, seed, _SKETCH)).T)[0].T
    low = (Q * product(Q)).sum().item()
    z = signs(like, products // 3, seed)
    z = z - (z @ Q.T) @ Q
    rest, error = mean_and_error((z * product(z)).sum(1))
    return low + rest, error


def hutchinson_diagonal(
    product: Product, like: Tensor, probes: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    r"""Return the diagonal, :math:`E[z \odot A z]`, and its standard error, both (n,).

    Args:
        product: Of A.
        like: A vector of A's size and type, (n,).
        probes: Vectors z of random signs, at least 2.
        seed: Of the vectors.

    Reference:
        C. Bekas, E. Kokiopoulou, Y. Saad, "An estimator for the diagonal of a
        matrix", Appl. Numer. Math. 2007.
    """
    at_least(2, probes=probes)
    z = signs(like, probes, seed)
    found = z * product(z)
    return found.mean(0), found.std(0) / probes**0.5
