"""How a gradient of any size is shown to a network."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def log_and_sign(x: Tensor, factor: float = 10.0, dim: int = -1) -> Tensor:
    r"""Return size and direction of numbers that span many orders of magnitude.

    With :math:`P` the factor, numbers of at least :math:`e^{-P}` become
    :math:`(\ln(|x| + 10^{-8})/P,\ \mathrm{sign}\,x)`, smaller ones
    :math:`(-1,\ e^P x)`. The slope of the sign counts as zero.

    Args:
        x: Any shape (...); nan stays nan.
        factor: P, > 0.
        dim: Where the two stand in the result; 0 keeps each contiguous.

    Returns:
        Shape (..., 2), or (2, ...).

    Reference:
        M. Andrychowicz et al., "Learning to learn by gradient descent by gradient
        descent", NeurIPS 2016, arXiv 1606.04474; the 1e-8 is the released code's.

    Example:
        >>> log_and_sign(torch.tensor([-1.0, 0.0]))
        tensor([[ 1.0000e-09, -1.0000e+00],
                [-1.0000e+00,  0.0000e+00]])
    """
    least = math.log(math.exp(-factor) + 1e-8) / factor
    size = F.threshold((x.abs() + 1e-8).log() / factor, least, -1.0)
    return torch.stack([size, F.hardtanh(x * math.exp(factor))], dim)
