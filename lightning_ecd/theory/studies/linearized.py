"""Losses of sampled runs over learning rate and momentum."""

from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lightning_ecd.randomness import subsets

#: Entries of the states that go side by side: what stays in a cache.
_TOGETHER = 2**17
#: Steps between two looks at who diverges.
_LOOK = 100
#: A loss of so many times the first has diverged.
_LOST = 1e6

_BATCH_STREAM = 0x4C4D


def linearized_map(
    K: Tensor,
    d: Tensor,
    alpha: Tensor,
    beta: Tensor,
    batch: int,
    steps: int,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Tensor:
    """Return the losses of linearised runs after some steps; inf: diverged.

    All runs have the same mini-batches, so that a map is smooth but for what the
    mini-batches make of each setting; see `lightning_ecd.theory.sampled`.

    Args:
        K: Symmetric, (N, N).
        d: Output error at the start, (N,).
        alpha: Learning rates, (A,).
        beta: Momenta, (B,).
        batch: b.
        steps: t.
        seed: Of the mini-batches.
        progress: Told the share that is done.

    Returns:
        Shape (A, B); inf also where α <= 0 or |β| >= 1.
    """
    N = len(d)
    A, B = torch.meshgrid(alpha, beta, indexing="ij")
    inside = (A > 0) & (B.abs() < 1)
    draws = [subsets(1, batch, N, seed, _BATCH_STREAM, t)[0] for t in range(steps)]
    cells = list(
        zip(*(v[inside].split(max(1, _TOGETHER // N)) for v in (A, B)), strict=True)
    )
    losses = []
    for i, (a, b) in enumerate(cells):
        losses.append(_losses(K, d, a, b, draws))
        progress((i + 1) / len(cells))
    found = torch.full_like(A, torch.inf)
    return found.masked_scatter(inside, torch.cat(losses))


def _losses(
    K: Tensor, d: Tensor, alpha: Tensor, beta: Tensor, draws: list[Tensor]
) -> Tensor:
    """Return the last losses of runs of all settings, (P,)."""
    start = (d @ d).item() / (2 * len(d))
    found = torch.full_like(alpha, torch.inf)
    alive = torch.arange(len(alpha))
    D = d.repeat(len(alpha), 1)
    V = torch.zeros_like(D)
    a, b = alpha[:, None], beta[:, None]
    for t, rows in enumerate(draws):
        errors = D[:, rows].mul_(a / -len(rows))
        V.mul_(b).addmm_(errors, K[rows])
        D += V
        if (t + 1) % _LOOK == 0:
            going = D.square().mean(1) / 2 < _LOST * start
            if not going.all():
                alive, a, b, D, V = (x[going] for x in (alive, a, b, D, V))
            if not len(alive):
                break
    last = D.square().mean(1) / 2
    found[alive] = torch.where(last < _LOST * start, last, torch.inf)
    return found


def smoothed(losses: Tensor, width: float) -> Tensor:
    """Return losses whose logarithm is smoothed by a Gaussian; inf stays inf.

    Args:
        losses: Shape (A, B).
        width: σ of the Gaussian in cells, > 0.
    """
    known = losses.isfinite()
    logs = torch.where(known, losses, 1.0).log().numpy()  # 0 where it diverged
    sums, weights = (
        torch.from_numpy(gaussian_filter(part, width, mode="constant"))
        for part in (logs, known.double().numpy())
    )
    means = torch.where(known, sums / weights, torch.inf)
    return means.exp()
