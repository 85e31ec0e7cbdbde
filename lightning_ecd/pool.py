"""Data sets that many runs share, so that each is read and kept once.

A search opens the pool; in every process of a cluster it also fills it with tensors
that lie in shared memory. Closed, as at the start, nothing is kept.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers of a cluster that share nothing need not import torch
    from torch import Tensor

#: What distinguishes data sets: class, what it reads, part.
Key = tuple[str, ...]
Tensors = tuple["Tensor", ...]

_sets: dict[Key, Tensors] | None = None


def open_(sets: dict[Key, Tensors] | None = None) -> None:
    """Keep from now on what is read.

    Args:
        sets: What need not be read.
    """
    global _sets
    _sets = {**(_sets or {}), **(sets or {})}


def close() -> None:
    """Keep nothing from now on."""
    global _sets
    _sets = None


def content() -> dict[Key, Tensors]:
    """Return what the pool holds."""
    return dict(_sets or {})


def lent(key: Key, read: Callable[[], Tensors]) -> Tensors:
    """Return a data set of the pool, or read it.

    Args:
        key: Of the data set.
        read: Reads it; what it returns must not be changed in place by anyone.
    """
    if _sets is None:
        return read()
    if key not in _sets:
        _sets[key] = read()
    return _sets[key]
