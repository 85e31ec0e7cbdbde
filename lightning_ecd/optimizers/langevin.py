"""Langevin dynamics of the parameters themselves: SGLD, EntropySGLD."""

import math
from dataclasses import replace
from typing import Annotated

from lightning_ecd.optimizers.base import Descent, Evaluate, Number, ParamsT, with_decay
from lightning_ecd.optimizers.entropy import EntropySGD
from lightning_ecd.optimizers.exploration import FAMILY
from lightning_ecd.ranges import Integers, LogUniform, Uniform


class SGLD(Descent):
    r"""Stochastic-gradient Langevin dynamics with falling steps.

    .. math:: x \leftarrow x - \eta_t (\nabla f + \lambda x)
        + \sqrt{2 \eta_t}\,\varepsilon\,z, \qquad \eta_t = \eta\,(1 + t)^{-b},
        \quad t = 1, 2, \dots

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        weight_decay: L2 factor λ >= 0.
        noise: Thermal noise ε >= 0.
        power: Exponent b >= 0.
        seed: Of the noise.

    Reference:
        M. Welling, Y. W. Teh, "Bayesian learning via stochastic gradient Langevin
        dynamics", ICML 2011.
    """

    traits = replace(
        FAMILY,
        summary="Langevin dynamics of the parameters themselves",
        paper="Welling, Teh, ICML 2011",
        closure=False,
        evaluations="1",
        minibatches="1",
        state="0",
        accumulation=True,
    )
    bounds = {
        "lr": "(0, inf)",
        "weight_decay": "[0, inf)",
        "noise": "[0, inf)",
        "power": "[0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        noise: Annotated[float, LogUniform(1e-5, 1e-1)] = 1e-3,
        power: Annotated[float, Uniform(0.0, 1.0)] = 0.25,
        seed: int = 0,
    ):
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "noise": noise,
            "power": power,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Follow the gradient and diffuse."""
        t, body = self.system["steps"] + 1, self.body_of(self.x)
        for group, part in self.parts:
            x, lr = self.x[part], group["lr"] * (1 + t) ** -group["power"]
            x.sub_(with_decay(self.g[part], x, group["weight_decay"]), alpha=lr)
            if group["noise"]:
                z = body.normals(x, group["seed"], t, part.start)
                x.sub_(z, alpha=math.sqrt(2 * lr) * group["noise"])


class EntropySGLD(EntropySGD):
    r"""Entropy-SGD whose parameters themselves diffuse: a PAC-Bayes prior.

    .. math:: x \leftarrow x - \eta (x - \mu) + \sqrt{2 \eta T}\, z

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 of the parameters.
        momentum: m in [0, 1) of the exploring point.
        weight_decay: L2 factor λ >= 0.
        inner_steps: L >= 0, exploring points; 0: gradient descent.
        inner_lr: Step size η' > 0 of the exploring point.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        noise: Thermal noise ε >= 0 of the exploring point.
        temperature: T >= 0 of the parameters.
        seed: Of the noise.

    Reference:
        G. K. Dziugaite, D. M. Roy, "Entropy-SGD optimizes the prior of a PAC-Bayes
        bound", ICML 2018, arXiv 1712.09376.
    """

    traits = replace(
        EntropySGD.traits,
        summary="Entropy-SGD with Langevin noise in the parameters",
        paper="Dziugaite, Roy, ICML 2018, arXiv 1712.09376",
        evaluations="inner_steps + (inner_steps == 0)",
        minibatches="inner_steps + (inner_steps == 0)",
        state="(inner_steps == 0) * (momentum != 0)",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.05, 1.0)] = 1.0,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 20,
        inner_lr: Annotated[float, Uniform(0.02, 1.0)] = 0.1,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 1e-4,
        scoping: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        noise: Annotated[float, LogUniform(1e-5, 1e-3)] = 1e-4,
        temperature: Annotated[float, LogUniform(1e-12, 1e-4)] = 1e-8,
        seed: int = 0,
    ):
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay=weight_decay,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            gamma=gamma,
            scoping=scoping,
            noise=noise,
            temperature=temperature,
            seed=seed,
        )
