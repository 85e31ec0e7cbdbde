"""Entropy-Adam: Adam on the gradient of the local entropy."""

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor

from lightning_ecd.optimizers.base import ParamsT
from lightning_ecd.optimizers.entropy import BOUNDS, resolved
from lightning_ecd.optimizers.exploration import FAMILY, LocalEntropy
from lightning_ecd.ranges import Integers, LogUniform


class EntropyAdam(LocalEntropy):
    r"""Adam, fed with x - μ of the local entropy instead of the gradient.

    The exploring points are those of `EntropySGD`; their momentum lives on from step
    to step.

    .. math:: D = \rho \nabla f(x) + x - \mu, \quad
        M \leftarrow \beta_1 M + (1 - \beta_1) D, \quad
        V \leftarrow \beta_2 V + (1 - \beta_2) D^2

    .. math:: x \leftarrow x - \frac{\eta}{1 + t\,\delta}
        \frac{\sqrt{1 - \beta_2^{t+1}}}{1 - \beta_1^{t+1}} \frac{M}{\sqrt V + \epsilon}

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        betas: β1 and β2 in [0, 1).
        eps: ε > 0, added before the bias correction.
        momentum: Of the exploring point, in [0, 1), Nesterov's.
        weight_decay: L2 factor λ >= 0, beside the momentum of the exploring point; in
            D only if L = 0.
        inner_steps: L >= 0, exploring points; 0: Adam on the gradient.
        inner_lr: Step size η' > 0 of the exploring point; default: Adam's present one.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        noise: Thermal noise ε >= 0.
        gamma_max: Largest γ > 0; default: none.
        alpha: Weight α in (0, 1] of the newest point in the mean.
        rho: ρ >= 0: part of the gradient at x in D.
        lr_decay: δ >= 0.
        skip_first_eval: Let the evaluation at x be the first exploring gradient.
        diagnostics_every: Steps between diagnostics; 0: none.
        seed: Of the noise.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838 (recurrent networks).
    """

    traits = replace(
        FAMILY,
        summary="Adam on the direction of the local entropy",
        paper="Chaudhari et al., ICLR 2017, arXiv 1611.01838",
        state="2 + (inner_steps > 0 and inner_momentum != 0)",
    )
    bounds = {
        **{k: v for k, v in BOUNDS.items() if k != "temperature"},
        "betas": "[0, 1)",
        "eps": "(0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-4, 1e-1)] = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 5,
        inner_lr: float | None = None,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 1e-4,
        scoping: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        noise: Annotated[float, LogUniform(1e-5, 1e-3)] = 1e-4,
        gamma_max: float | None = None,
        alpha: float = 0.25,
        rho: float = 0.0,
        lr_decay: float = 0.0,
        skip_first_eval: bool = True,
        diagnostics_every: int = 50,
        seed: int = 0,
    ):
        switches = resolved(
            "lua",
            momentum=momentum,
            inner_lr=inner_lr,
            gamma_max=gamma_max,
            alpha=alpha,
            inner_nesterov=True,
            reset_inner_momentum=False,
            skip_first_eval=skip_first_eval,
        )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "dampening": 0.0,
            "weight_decay": weight_decay,
            "inner_steps": inner_steps,
            "inner_lr": inner_lr,
            "gamma": gamma,
            "scoping": scoping,
            "noise": noise,
            "scope_schedule": "exponential",
            "rho": rho,
            "lr_decay": lr_decay,
            "diagnostics_every": diagnostics_every,
            "seed": seed,
            **switches,
        }
        super().__init__(params, defaults)

    def keeps_first(self) -> bool:
        """Return whether the gradient at x is part of the direction."""
        return any(group["rho"] for group in self.param_groups)

    def inner_rate(self, group: dict[str, Any]) -> float:
        """Return η', or Adam's step size."""
        own = group["inner_lr"]
        return self._rate(group) if own is None else own

    def direction(
        self, group: dict[str, Any], c: Tensor, mean: Tensor, first: Tensor | None
    ) -> Tensor:
        """Return D = ρ ∇f(x) + x - μ."""
        d = super().direction(group, c, mean, first)
        if group["rho"] and first is not None:
            d.add_(first, alpha=group["rho"])
        return d

    def follow(
        self,
        group: dict[str, Any],
        part: slice,
        c: Tensor,
        d: Tensor,
        first: Tensor | None,
    ) -> None:
        """Move x by Adam's step."""
        (beta1, beta2), steps = group["betas"], self._rate(group)
        M, V = self.kept("exp_avg")[part], self.kept("exp_avg_sq")[part]
        M.mul_(beta1).add_(d, alpha=1 - beta1)
        V.mul_(beta2).addcmul_(d, d, value=1 - beta2)
        move = M / V.sqrt().add_(group["eps"])
        torch.add(c, move, alpha=-steps, out=self.x[part])

    def _rate(self, group: dict[str, Any]) -> float:
        """Return η/(1 + t δ) √(1 - β2^(t+1))/(1 - β1^(t+1))."""
        (beta1, beta2), t = group["betas"], self.system["steps"]
        correction = math.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1))
        return group["lr"] / (1 + t * group["lr_decay"]) * correction
