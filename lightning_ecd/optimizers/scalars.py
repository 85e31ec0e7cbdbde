"""Scalars of one text: floats on the host, 0-d tensors on an accelerator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ecd.kernels import Number


def where(condition: bool | Tensor, yes: Number, no: Number) -> Number:
    """Return `yes` where the condition holds, else `no`, for floats or tensors."""
    if not isinstance(condition, Tensor):
        return yes if condition else no
    # torch.where copies a Python number to the device and waits; these do not
    if isinstance(no, Tensor) and isinstance(yes, Tensor):
        return torch.where(condition, yes, no)
    if isinstance(yes, Tensor):
        return yes.masked_fill(~condition, no)
    if isinstance(no, Tensor):
        return no.masked_fill(condition, yes)
    return condition.double() * (yes - no) + no


def stacked(numbers: Sequence[Number]) -> Tensor:
    """Return floats or 0-d tensors as one float64 vector."""
    return torch.stack([torch.as_tensor(n, dtype=torch.float64) for n in numbers])
