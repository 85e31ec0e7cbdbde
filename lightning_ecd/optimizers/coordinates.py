"""What may be done to coordinates before they are expanded."""

import torch
from torch import Tensor


def transformed(c: Tensor, how: str) -> Tensor:
    """Return coordinates with a new scale, between -1/2 and 1/2.

    Args:
        c: Shape (d,).
        how: "none"; "norm": (c - min)/max(c - min) - 1/2; "ranks": the rank of each,
            0 for the smallest, divided by d - 1, minus 1/2. Equal coordinates give 0
            with "norm".
    """
    if how == "norm":
        above = c - c.min()
        span = above.max()
        scaled = above / torch.where(span > 0, span, torch.ones_like(span)) - 0.5
        return torch.where(span > 0, scaled, torch.zeros_like(c))
    if how == "ranks":
        if len(c) < 2:
            return torch.zeros_like(c)
        return c.argsort(stable=True).argsort().to(c.dtype) / (len(c) - 1) - 0.5
    return c


def selected(c: Tensor, fraction: float | None = None, count: int = 0) -> Tensor:
    """Return coordinates, those that are not chosen set to zero.

    Args:
        c: Shape (d,).
        fraction: f in [-1, 1]. Above 0: keep the k = round(f d) largest |c|. Below 0:
            keep the smaller ones, all but the round(d (1 - |f|)) largest; 0: none.
        count: k. Above 0: keep the k largest, with their signs; below 0: keep all but
            the |k| largest.
    """
    if fraction is not None:
        size = c.abs()
        if fraction >= 0:
            return c * _largest(size, round(len(c) * fraction))
        return c * ~_largest(size, round(len(c) * (1 + fraction)))
    if count > 0:
        return c * _largest(c, count)
    if count < 0:
        return c * ~_largest(c, -count)
    return c


def extremes(c: Tensor, how: str, fraction: float) -> Tensor:
    """Return which directions to redraw, shape (d,), bool.

    Args:
        c: Coordinates, (d,).
        how: "low" or "high": those of small or of large |c|.
        fraction: Of all.
    """
    if how == "high":
        return _largest(c.abs(), round(len(c) * fraction))
    return ~_largest(c.abs(), round(len(c) * (1 - fraction)))


def _largest(values: Tensor, k: int) -> Tensor:
    """Return a mask of the k largest entries."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.topk(min(max(k, 0), len(values))).indices] = True
    return mask
