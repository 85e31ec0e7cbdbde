r"""Coordinates and update drawn from their joint law, without any basis.

For normal rows that are drawn anew at every step, only two things of them matter: the
component p_i of each row along u = g/|g|, and where the rest of :math:`\sum c_i e_i`
points to, which is uniform on the sphere orthogonal to u. Both together are n + d
normal numbers in place of n d.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ecd.bases.basis import Basis
from lightning_ecd.errors import UserError
from lightning_ecd.flat import dot, square_norm
from lightning_ecd.kernels import Number, add_scaled, body_of
from lightning_ecd.randomness import generator, mixed, normals

#: Separates draws of one basis.
_ALONG, _REST, _LENGTHS, _ANGLES = range(1, 5)


class InLaw(Basis):
    r"""Normal rows, in law.

    .. math:: c = |g|\,p, \qquad \sum_i c_i e_i = u\,(p \cdot c) + |c|\,(z - u\,(u
        \cdot z)), \qquad p \sim N(0, I_d),\ z \sim N(0, I_n)

    exact for any c that is a function of the projection. What depends on the rows'
    lengths :math:`r_i^2 = p_i^2 + q_i` has :math:`q_i \sim \chi^2_{n-1}` and the Gram
    factor of the rests by Bartlett's decomposition.
    """

    rows_exist = False

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        self._step = counters[0] if self.d else 0
        self._g = self._p = like
        self._size: Number = 0.0
        self._q: Tensor | None = None

    def project(self, g: Tensor) -> Tensor:
        """Return a draw of e_i·g, shape (d,)."""
        self._g, self._size, self._p = g, square_norm(g) ** 0.5, self._along()
        return self._p * self._size

    def expand(self, c: Tensor) -> Tensor:
        """Return a draw of Σ c_i e_i, shape (n,), given the projection."""
        body, g = body_of(self.like), self._g
        z = body.normals(self.like, mixed(self.seed, _REST), self._step, 0)
        inverse = _inverse(self._size)
        along = dot(g, z) * inverse  # u·z
        scale = self._scale(c, z, along)
        z = z.to(self.dtype).mul_(scale)
        add_scaled(z, (dot(self._p, c) - scale * along) * inverse, g.to(self.dtype))
        return z

    def rows(self, start: int, stop: int) -> Tensor:
        """Refuse: there are no rows."""
        raise NotImplementedError("a basis in law has no rows")

    def squares(self) -> Tensor:
        """Return a draw of |e_i|², shape (d,)."""
        if self._q is None:
            freedom = self._column().fill_(self.n - 1)
            self._q = _chi_squares(freedom, self.seed, _LENGTHS, self._step)
        return self._p.square() + self._q

    def _along(self) -> Tensor:
        """Return a draw of p, the rows' components along u, shape (d,)."""
        return normals(self._column(), self.seed, _ALONG, self._step)

    def _scale(self, c: Tensor, z: Tensor, along: Number) -> Number:
        """Return the factor of z - u (u·z) in the expansion; `along` is u·z."""
        if self._q is None:
            return square_norm(c) ** 0.5
        # rests of unit length, as rows of their Gram factor
        columns = min(self.d, self.n - 1)
        like = self._column().double()
        draws = like.new_empty(self.d, columns)
        L = normals(draws, self.seed, _ANGLES, self._step).tril(-1)
        freedom = self.n - 1 - torch.arange(columns, device=like.device).double()
        chi = _chi_squares(freedom, self.seed, _ANGLES, self._step, 1)
        L.diagonal().copy_(chi.sqrt())
        L = L / torch.linalg.vector_norm(L, dim=1, keepdim=True)
        rest = square_norm(L.T @ (c.double() * self._q.double().sqrt()))
        return (rest * _inverse(square_norm(z) - along**2)) ** 0.5

    def _column(self) -> Tensor:
        return self.like.new_empty(self.d, dtype=self.dtype)


class OrthonormalInLaw(InLaw):
    r"""A uniformly random frame of √n times orthonormal rows, in law.

    :math:`p = \sqrt{n \beta}\,v` with :math:`\beta \sim B(d/2, (n-d)/2)` and v uniform
    on the unit sphere of d dimensions; the rest of :math:`\sum c_i e_i` has the length
    :math:`\sqrt{n |c|^2 - (p \cdot c)^2}`.
    """

    def __init__(self, like: Tensor, counters: Sequence[int], seed: int):
        super().__init__(like, counters, seed)
        if self.d > self.n:
            raise UserError(
                f"dimensions must be at most {self.n}, the number of parameters, with "
                f"basis 'orthonormal_in_law', got {self.d}"
            )

    def squares(self) -> Tensor:
        """Return |e_i|² = n, shape (d,)."""
        return torch.full_like(self._column(), self.n)

    def _along(self) -> Tensor:
        v = super()._along().double()
        freedom = v.new_tensor([self.n - self.d])
        outside = _chi_squares(freedom, self.seed, _LENGTHS, self._step)
        # |v|² ~ chi² of d: β = |v|² / (|v|² + outside)
        length = (v.square().sum() + outside).sqrt()
        return (v * (self.n**0.5 / length)).to(self.dtype)

    def _scale(self, c: Tensor, z: Tensor, along: Number) -> Number:
        rest = self.n * square_norm(c) - dot(self._p, c) ** 2
        rest = rest.clamp(min=0) if isinstance(rest, Tensor) else max(rest, 0.0)
        return (rest * _inverse(square_norm(z) - along**2)) ** 0.5


def _inverse(number: Number) -> Number:
    """Return 1 / number, 0 for 0: without a direction there is no component."""
    if isinstance(number, Tensor):
        return torch.where(number > 0, 1 / number, torch.zeros_like(number))
    return 1 / number if number > 0 else 0.0


def _chi_squares(freedom: Tensor, seed: int, *counters: int) -> Tensor:
    """Return draws of chi² with these degrees of freedom; 0 of none."""
    draw = generator(seed, *counters, device=freedom.device)
    gamma = torch._standard_gamma((freedom.double() / 2).clamp(min=1e-9), draw)
    return (2 * gamma).where(freedom > 0, torch.zeros_like(gamma)).to(freedom.dtype)
