"""Orthogonal bases that cost O(n log n) or O(n), whatever the number of rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ecd.bases.basis import Basis
from lightning_ecd.errors import UserError
from lightning_ecd.kernels import projections_of
from lightning_ecd.randomness import generator, mixed, normals, uniforms

#: Separates draws of one basis.
_ROWS, _SIGNS = 1, 2


class SRHT(Basis):
    r"""Subsampled randomized Hadamard transform: rows of H diag(±1), cropped.

    H is the matrix of the next power of two, of which d rows are drawn; the signs
    alone make :math:`E[P^T P]` a multiple of the identity.

    Reference:
        J. A. Tropp, "Improved analysis of the subsampled randomized Hadamard
        transform", 2011, arXiv 1011.1595.
    """

    structured = True

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._fast = projections_of(like)
        self._size = 1 << max(self.n - 1, 0).bit_length()
        if self.d > self._size:
            raise UserError(
                f"dimensions must be at most {self._size} with basis 'srht' on "
                f"{self.n} parameters, got {self.d}"
            )
        self._step = counters[0] if self.d else 0
        self._chosen: Tensor | None = None

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        v = self._flipped(g.to(self.like.dtype), self._size)
        return self._transformed(v)[self._indices()].to(self.dtype)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        v = self.like.new_zeros(self._size, dtype=self.like.dtype)
        v[self._indices()] = c.to(v.dtype)
        return self._flipped(self._transformed(v)[: self.n], self.n).to(self.dtype)

    def squares(self) -> Tensor:
        """Return |e_i|² = n, shape (d,)."""
        return self.like.new_full((self.d,), self.n, dtype=self.dtype)

    def _indices(self) -> Tensor:
        """Return the rows of H, shape (d,)."""
        if self._chosen is None:
            device = self.like.device
            draw = generator(self.seed, _ROWS, self._step, device=device)
            if self._fast is not None and 4 * self.d < self._size:
                chosen: dict[int, None] = {}
                while len(chosen) < self.d:  # a permutation of all would take longer
                    more = torch.randint(self._size, (2 * self.d,), generator=draw)
                    chosen |= dict.fromkeys(more.tolist())
                self._chosen = torch.tensor(list(chosen)[: self.d])
            else:
                order = torch.randperm(self._size, generator=draw, device=device)
                self._chosen = order[: self.d]
        return self._chosen

    def _flipped(self, v: Tensor, size: int) -> Tensor:
        """Return ±v, zeros behind it up to `size`."""
        seed = mixed(self.seed, _SIGNS)
        if self._fast is not None:
            return self._fast.flip(v.contiguous(), self._step, seed, size)
        out = v.new_zeros(size)
        signs = uniforms(v, seed, self._step) - 0.5
        out[: len(v)] = v * torch.ones_like(v).copysign_(signs)
        return out

    def _transformed(self, v: Tensor) -> Tensor:
        """Return H v; `v` may be written."""
        if self._fast is not None:
            self._fast.hadamard(v)
            return v
        h = 1
        while h < len(v):
            pairs = v.view(-1, 2, h)
            a, b = pairs[:, 0], pairs[:, 1]
            v = torch.stack([a + b, a - b], 1).reshape(-1)
            h *= 2
        return v


class CountSketch(Basis):
    r"""Every parameter belongs to one row, with a random sign; entries ±√d.

    Reference:
        M. Charikar, K. Chen, M. Farach-Colton, "Finding frequent items in data
        streams", ICALP 2002.
    """

    structured = True

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._fast = projections_of(like)
        self._step = counters[0] if self.d else 0

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        return self._sums(g).to(self.dtype).mul_(self.d**0.5)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        return self._spread(c * self.d**0.5).to(self.dtype)

    def squares(self) -> Tensor:
        """Return |e_i|², d times the entries of a row, shape (d,)."""
        ones = self.like.new_ones(self.d, dtype=self.dtype)
        return (
            self._sums(self._spread(ones).to(self.like.dtype)).to(self.dtype) * self.d
        )

    def _sums(self, g: Tensor) -> Tensor:
        if self._fast is not None:
            return self._fast.sketch(g.contiguous(), self.d, self._step, self.seed)
        bins, signs = self._choices()
        sums = self.like.new_zeros(self.d, dtype=self.dtype)
        return sums.index_add_(0, bins, signs * g.to(self.dtype))

    def _spread(self, c: Tensor) -> Tensor:
        if self._fast is not None:
            return self._fast.unsketch(c, self.like, self._step, self.seed)
        bins, signs = self._choices()
        return c.to(self.dtype)[bins] * signs

    def _choices(self) -> tuple[Tensor, Tensor]:
        """Return row and sign of every entry, shapes (n,)."""
        device = self.like.device
        draw = generator(self.seed, _ROWS, self._step, device=device)
        bins = torch.randint(self.d, (self.n,), generator=draw, device=device)
        like = torch.ones_like(self.like, dtype=self.dtype)
        draws = uniforms(like, self.seed, _SIGNS, self._step) - 0.5
        return bins, like.copysign_(draws)


class Orthonormal(Basis):
    """A uniformly random frame, from normal rows by QR; √n times orthonormal rows.

    Takes d n numbers of memory and d² n operations.
    """

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        if self.d > self.n:
            raise UserError(
                f"dimensions must be at most {self.n}, the number of parameters, with "
                f"basis 'orthonormal', got {self.d}"
            )
        self._frame: Tensor | None = None

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        return self.rows(0, self.d) @ g.to(self.dtype)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        return c.to(self.dtype) @ self.rows(0, self.d)

    def squares(self) -> Tensor:
        """Return |e_i|² = n, shape (d,)."""
        return self.like.new_full((self.d,), self.n, dtype=self.dtype)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows from `start` to before `stop`, shape (stop - start, n)."""
        if self._frame is None:
            step = self.counters[0] if self.d else 0
            like = self.like.new_empty(self.n, self.d, dtype=self.dtype)
            q, r = torch.linalg.qr(normals(like, self.seed, step))
            signs = torch.ones_like(r.diagonal()).copysign_(r.diagonal())
            self._frame = (q * signs).T * self.n**0.5  # signs make it uniform
        return self._frame[start:stop]
