"""What every random basis can do: project a vector, expand coordinates."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor


class Basis(ABC):
    """Rows e_1 ... e_d of n entries with mean square 1, made on the way.

    Row i is a function of (seed, counters[i]): whoever knows these can make it again.

    Args:
        like: A vector with n entries, of the type and device wanted.
        counters: Of the rows, d integers below 2**63.
        seed: Of the basis.
    """

    #: Whether rows exist that can be made again, one by one by their counters.
    rows_exist: ClassVar[bool] = True
    #: Whether a row depends on its own counter alone.
    rows_independent: ClassVar[bool] = False
    #: Whether products cost less than reading the rows would.
    structured: ClassVar[bool] = False

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        self.like, self.counters, self.seed = like, counters, seed

    @property
    def n(self) -> int:
        """Number of entries of a row."""
        return len(self.like)

    @property
    def d(self) -> int:
        """Number of rows."""
        return len(self.counters)

    @property
    def dtype(self) -> torch.dtype:
        """Type of coordinates: that of the vectors, at least float32."""
        return torch.promote_types(self.like.dtype, torch.float32)

    @abstractmethod
    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,), for g of shape (n,)."""

    @abstractmethod
    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,), for c of shape (d,)."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Return |e_i|², shape (d,); in the law of a vector, after `project`."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows from `start` to before `stop`, shape (stop - start, n)."""
        units = torch.eye(self.d, dtype=self.dtype, device=self.like.device)
        return torch.stack([self.expand(units[i]) for i in range(start, stop)])
