"""Gradient descent with momentum, on the flat vectors."""

from typing import Annotated

from lightning_ecd.optimizers.base import (
    Descent,
    Evaluate,
    Number,
    ParamsT,
    with_decay,
    with_momentum,
)
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.ranges import LogUniform, Uniform


class HeavyBall(Descent):
    r"""Heavy-ball momentum, negative values allowed.

    Equal to torch's SGD for momentum in [0, 1). A negative momentum, which torch
    refuses, damps the oscillation that mini-batch noise drives and can be optimal
    where noise dominates.

    .. math:: p \leftarrow \mu p + g + w_d \theta, \qquad
        \theta \leftarrow \theta - \Delta t\, p

    Args:
        params: Parameters or groups.
        lr: Step size Δt > 0.
        momentum: μ in (-1, 1), the paper's β.
        weight_decay: L2 factor w_d >= 0.

    Reference:
        M. Velikanov, D. Kuznedelev, D. Yarotsky, "A view of mini-batch SGD via
        generating functions", ICLR 2023, arXiv 2206.11124.
    """

    traits = Traits(
        family="plain",
        summary="SGD whose momentum may be negative",
        paper="Velikanov, Kuznedelev, Yarotsky, ICLR 2023, arXiv 2206.11124",
        state="momentum != 0",
        rows=True,
    )
    bounds = {"lr": "(0, inf)", "momentum": "(-1, 1)", "weight_decay": "[0, inf)"}

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-4, 1e1)] = 1e-2,
        momentum: Annotated[float, Uniform(-0.99, 0.99)] = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        )

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Follow the gradient, keeping some of the last direction."""
        for group, part in self.parts:
            x, m = self.x[part], group["momentum"]
            d = with_decay(self.g[part], x, group["weight_decay"])
            if m:
                d = with_momentum(self.kept("momentum")[part], d, m, False)
            x.add_(d, alpha=-group["lr"])
