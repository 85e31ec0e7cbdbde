"""Normalized directions φ_i of one compartment: P g and Pᵀ c."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ecd.bases.basis import Basis


class Explicit(Basis):
    """Rows given as a matrix.

    Args:
        rows: Shape (d, n).
    """

    def __init__(self, rows: Tensor):
        super().__init__(rows.new_empty(rows.shape[1]), range(len(rows)), 0)
        self._rows = rows

    def project(self, g: Tensor) -> Tensor:
        """Return e_i·g, shape (d,)."""
        return self._rows @ g.to(self._rows.dtype)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i e_i, shape (n,)."""
        return c.to(self._rows.dtype) @ self._rows

    def squares(self) -> Tensor:
        """Return |e_i|², shape (d,)."""
        return self._rows.square().sum(1)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows from `start` to before `stop`, shape (stop - start, n)."""
        return self._rows[start:stop]


class Projector:
    r"""Directions :math:`\phi_i` of one compartment.

    ==============  ==============================================================
    `normalize`     directions φ_i
    ==============  ==============================================================
    "auto"          e_i / √D, D parameters in all compartments together
    a number ν      e_i / ν
    "unbiased"      e_i / √d: the mean of Pᵀ P is the identity
    "row"           e_i / |e_i|
    "tensor"        e_i / |e_i| for every tensor (or piece of one) by itself
    "mean"          e_i; Σ c_i e_i is divided by d
    "mean_sq"       e_i / d, both in P g and in Σ c_i e_i
    ==============  ==============================================================

    Args:
        blocks: Parts of the compartment's vector, and the basis of each; with "row"
            and "tensor" each part is normalized by itself.
        normalize: See above.
        whole: D.
    """

    def __init__(
        self, blocks: Sequence[tuple[slice, Basis]], normalize: float | str, whole: int
    ):
        self.blocks = blocks
        d = max(blocks[0][1].d, 1)
        self._unit = normalize in ("row", "tensor")
        self._down, self._up = {
            "auto": (whole**-0.5, whole**-0.5),
            "unbiased": (d**-0.5, d**-0.5),
            "mean": (1.0, 1 / d),
            "mean_sq": (1 / d, 1 / d),
        }.get(str(normalize), (1.0, 1.0))
        if isinstance(normalize, int | float):
            self._down = self._up = 1 / normalize
        self._weights: list[Tensor] = []

    def project(self, g: Tensor) -> Tensor:
        """Return the coordinates φ_i·g, shape (d,)."""
        if not self._unit:
            (part, basis), *_ = self.blocks  # one, but where each is normalized
            return basis.project(g[part]).mul_(self._down)
        dots = [basis.project(g[part]) for part, basis in self.blocks]
        self._weights = []  # a law draws lengths anew with every projection
        pairs = zip(dots, self._lengths(), strict=True)
        return torch.stack([found * weight for found, weight in pairs]).sum(0)

    def expand(self, c: Tensor) -> Tensor:
        """Return Σ c_i φ_i, shape (n,)."""
        if not self._unit:
            return self.blocks[0][1].expand(c * self._up)
        pairs = zip(self._lengths(), self.blocks, strict=True)
        return torch.cat([basis.expand(c * weight) for weight, (_, basis) in pairs])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return φ_i for i from `start` to before `stop`, shape (stop - start, n)."""
        rows = [basis.rows(start, stop) for _, basis in self.blocks]
        if self._unit:
            rows = [
                part * weight[start:stop, None]
                for part, weight in zip(rows, self._lengths(), strict=True)
            ]
        return torch.cat(rows, 1) * self._down

    def raw(self, start: int, stop: int) -> Tensor:
        """Return e_i, without any normalization, shape (stop - start, n)."""
        return torch.cat([basis.rows(start, stop) for _, basis in self.blocks], 1)

    def _lengths(self) -> list[Tensor]:
        """Return 1 / |e_i| of every block, known from `project` where that was."""
        if not self._weights:
            weights = [basis.squares().rsqrt() for _, basis in self.blocks]
            self._weights = [torch.where(w.isfinite(), w, 0.0) for w in weights]
        return self._weights
