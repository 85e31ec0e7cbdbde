"""Bases of independent entries: normal, Rademacher, uniform, and two of the release."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_ecd.bases.basis import Basis
from lightning_ecd.kernels import body_of, products_of
from lightning_ecd.randomness import uniforms

#: Rows in memory at once where they are products of matrices.
_CHUNK = 16


class Independent(Basis):
    """Rows drawn one by one; products row by row, in chunks."""

    rows_independent = True

    @abstractmethod
    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows from `start` to before `stop`, shape (stop - start, n)."""
        counters = self.counters[start:stop]
        rows = self.like.new_empty(len(counters), self.n, dtype=self.dtype)
        for row, counter in zip(rows, counters, strict=True):
            row.copy_(self.row(counter))
        return rows

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        return self._over_rows(lambda rows: rows @ g.to(self.dtype))

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        total = torch.zeros_like(self.like, dtype=self.dtype)
        for start in range(0, self.d, _CHUNK):
            rows = self.rows(start, min(start + _CHUNK, self.d))
            total.addmv_(rows.T, c[start : start + _CHUNK].to(self.dtype))
        return total

    def squares(self) -> Tensor:
        """Return |e_i|², shape (d,)."""
        return self._over_rows(lambda rows: rows.square().sum(1))

    def _over_rows(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        chunks = range(0, self.d, _CHUNK)
        parts = [function(self.rows(i, min(i + _CHUNK, self.d))) for i in chunks]
        return torch.cat(parts) if parts else self.like.new_empty(0)


class Normal(Independent):
    """Entries N(0, 1)."""

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._body, self._fast = body_of(like), products_of(like)
        self._squares: Tensor | None = None

    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""
        return self._body.normals(self.like, self.seed, counter, 0)

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        if self._fast is None:
            return super().project(g)
        found = self._fast.project("normals", g, self.counters, self.seed)
        dots, self._squares = found
        return dots.to(self.dtype)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        if self._fast is None:
            return super().expand(c)
        return self._fast.expand("normals", c, self.like, self.counters, self.seed)

    def squares(self) -> Tensor:
        """Return |e_i|², shape (d,); summed while projecting."""
        if self._squares is None:
            return super().squares()
        return self._squares.to(self.dtype)


class Rademacher(Independent):
    """Entries -1 and 1, each with probability 1/2."""

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._fast = products_of(like)

    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""
        ones = torch.ones_like(self.like)
        if self._fast is not None:
            alone = range(counter, counter + 1)
            return self._fast.expand("signs", ones[:1], ones, alone, self.seed)
        return ones.copysign_(uniforms(ones, self.seed, counter) - 0.5)

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        if self._fast is None:
            return super().project(g)
        dots, _ = self._fast.project("signs", g, self.counters, self.seed)
        return dots.to(self.dtype)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        if self._fast is None:
            return super().expand(c)
        return self._fast.expand("signs", c, self.like, self.counters, self.seed)

    def squares(self) -> Tensor:
        """Return |e_i|² = n, shape (d,)."""
        return self.like.new_full((self.d,), self.n, dtype=self.dtype)


class BernoulliReference(Rademacher):
    """Entries 1/2 and -3/2: the release's Bernoulli, whose mean is -1/2 by mistake."""

    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""
        return super().row(counter) - 0.5

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        dots = super().project(g)
        return dots if self._fast is None else dots - 0.5 * g.sum()

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        total = super().expand(c)
        return total if self._fast is None else total - 0.5 * c.sum().to(total.dtype)

    def squares(self) -> Tensor:
        """Return |e_i|², shape (d,)."""
        return Independent.squares(self)


class Uniform(Independent):
    """Entries uniform in [-1, 1): mean square 1/3, not 1, as released."""

    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""
        return uniforms(self.like, self.seed, counter).mul_(2).sub_(1)


class Lognormal(Normal):
    """Entries exp(z) - exp(1/2) with normal z: mean square 4.67, as released."""

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._fast = None

    def row(self, counter: int) -> Tensor:
        """Return the row of a counter, shape (n,)."""
        return super().row(counter).exp_().sub_(math.exp(0.5))
