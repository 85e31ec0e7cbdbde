"""Descent along the last few gradients of the training."""

from dataclasses import replace
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.flat import dot, square_norm
from lightning_ecd.optimizers.base import Descent, Evaluate, Number, ParamsT
from lightning_ecd.optimizers.directions import FAMILY
from lightning_ecd.optimizers.scalars import stacked, where
from lightning_ecd.ranges import Integers, LogUniform

Length = Literal["norm", "square"]


class GradientBasis(Descent):
    r"""Projects each gradient on the last d gradients.

    .. math:: \phi_i = g_{t-i}/|g_{t-i}|, \qquad w \leftarrow w - \eta \sum_{i=0}^{d-1}
        (\phi_i \cdot g_t)\, \phi_i

    How much of a gradient lies in the span of those before it tells how low-dimensional
    the training is. The directions are not orthogonal.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        dimensions: d >= 1, gradients kept.
        offset: Let the present gradient enter the basis only after the step.
        length: What divides a gradient: its "norm", or as released its "square" norm.
        diagnostics_every: Steps between diagnostics; 0: none.

    Note:
        The release does not move until d gradients have been seen; here the first
        steps follow those there are.

        Every `diagnostics_every` steps `info` holds ``cosines`` and ``correlations``
        (Pearson's) of the gradient with all directions.

    Reference:
        `grad` in the code of F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving
        neural network training in low dimensional random bases", NeurIPS 2020, arXiv
        2011.04720.
    """

    traits = replace(
        FAMILY,
        summary="descent along the last few gradients",
        state="dimensions",
        draws_noise=False,
    )
    bounds = {
        "lr": "(0, inf)",
        "dimensions": "[1, inf)",
        "diagnostics_every": "[0, inf)",
    }
    shared = ("dimensions", "offset", "length", "diagnostics_every")

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 2**-3,
        dimensions: Annotated[int, Integers(1, 20)] = 5,
        offset: bool = False,
        length: Length = "norm",
        diagnostics_every: int = 50,
    ):
        one_of(get_args(Length), length=length)
        defaults = {
            "lr": lr,
            "dimensions": dimensions,
            "offset": offset,
            "length": length,
            "diagnostics_every": diagnostics_every,
        }
        super().__init__(params, defaults)

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Move along the kept gradients; keep this one."""
        head, t = self.param_groups[0], self.system["steps"]
        d = head["dimensions"]
        gradients = [self.kept(f"gradient_{i}") for i in range(d)]
        newest, self.info = gradients[t % d], {}
        if not head["offset"]:
            newest.copy_(self.g)
        self._follow(gradients)
        every = head["diagnostics_every"]
        if every and (t + 1) % every == 0:
            self._diagnose(gradients)
        if head["offset"]:
            newest.copy_(self.g)

    def _follow(self, gradients: list[Tensor]) -> None:
        """Set w ← w - η Σ (φ_i·g) φ_i."""
        power = 1.0 if self.param_groups[0]["length"] == "norm" else 2.0
        g, s = self.g.to(gradients[0].dtype), torch.zeros_like(gradients[0])
        for v in gradients:
            s.add_(v * (dot(v, g) / _length(v) ** (2 * power)))
        for group, part in self.parts:
            self.x[part].sub_(s[part], alpha=group["lr"])

    def _diagnose(self, gradients: list[Tensor]) -> None:
        """Measure how the gradient lies to all directions."""
        g = self.g.to(gradients[0].dtype)
        cosines = [dot(v, g) / _length(v) / _length(g) for v in gradients]
        self.info = {
            "cosines": stacked(cosines),
            "correlations": torch.stack([_pearson(v, g) for v in gradients]),
        }


def _length(v: Tensor) -> Number:
    """Return |v|, or 1 for a vector of zeros, which divided by it adds nothing."""
    length = square_norm(v) ** 0.5
    return length + where(length > 0, 0.0, 1.0)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of two vectors' entries; 0 if one is constant."""
    return torch.nan_to_num(torch.corrcoef(torch.stack([a, b]))[0, 1])
