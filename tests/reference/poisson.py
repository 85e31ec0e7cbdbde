"""A network's Laplacian and the Poisson problem once more, slow and obvious.

The Laplacian is the textbook's: differentiate backward, then every entry of the
gradient backward again. The loss is written from the formulas of De Luca, Silverstein
(ICML 2022, arXiv 2201.11137), point by point where that is possible.
"""

import math

import numpy as np
import torch
from torch import Tensor


def nested(network, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value (N,), gradient (N, D) and Laplacian (N,) by nested autograd."""
    x = x.detach().clone().requires_grad_()
    u = network(x).squeeze(1)
    (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    laplacian = torch.zeros_like(u)
    for i in range(x.shape[1]):
        ascent = gradient[:, i].sum()
        (second,) = torch.autograd.grad(ascent, x, create_graph=True)
        laplacian = laplacian + second[:, i]
    return u, gradient, laplacian


def source(r: float) -> float:
    """Return f of the disc problem at radius r, as it is printed."""
    s = r * r
    return (
        3
        - 4 * (1 + 6400 * s) * math.cos(40 * s)
        + math.cos(80 * s)
        - 640 * math.sin(40 * s)
    ) / 8


def loss(network, interior: Tensor, boundary: Tensor, l2: float = 0.0) -> Tensor:
    """Return the loss of the disc problem: boundary value 0.833469, weight 1e5."""
    x = torch.cat([interior, boundary])
    u, _, laplacian = nested(network, x)
    f = torch.tensor([source(float(p.norm())) for p in x], dtype=x.dtype)
    distance = network(boundary) - 0.833469
    total = (-laplacian + u * u - f).pow(2).mean() + 1e5 * distance.pow(2).mean()
    for p in network.parameters():
        total = total + l2 * p.pow(2).sum()
    return total


def disc_points(seed: int, interior: int, boundary: int) -> tuple[list, list]:
    """Return the reference code's points, drawn one number after the other."""
    np.random.seed(seed)
    inner = []
    for _ in range(interior):
        a, b = np.random.normal(), np.random.normal()
        r = np.random.uniform() ** 0.5
        inner.append((r * a / math.hypot(a, b), r * b / math.hypot(a, b)))
    outer = []
    for _ in range(boundary):
        a, b = np.random.normal(), np.random.normal()
        outer.append((a / math.hypot(a, b), b / math.hypot(a, b)))
    return inner, outer
