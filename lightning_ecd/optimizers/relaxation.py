"""Relatives of Entropy-SGD from partial differential equations, and implicit steps."""

from dataclasses import replace
from typing import Annotated, Any

from lightning_ecd.optimizers.base import (
    Descent,
    Evaluate,
    Number,
    ParamsT,
    with_momentum,
)
from lightning_ecd.optimizers.entropy import BOUNDS, EntropySGD
from lightning_ecd.optimizers.exploration import growth
from lightning_ecd.ranges import Integers, LogUniform, Uniform

_TRAITS = replace(
    EntropySGD.traits,
    paper="Chaudhari et al., Res. Math. Sci. 2018, arXiv 1704.04932",
    evaluations="inner_steps + 1",
    minibatches="inner_steps + 1",
    state="(momentum != 0) * (1 + (inner_steps > 0))",
)


class HJB(EntropySGD):
    r"""Proximal descent: the inviscid limit of the local entropy (Hopf, Lax).

    Entropy-SGD (preset "hj") almost without noise, whose mean is almost the last
    exploring point, so that x moves towards the proximal point:

    .. math:: x \leftarrow x - \eta\,(x - \mu), \qquad
        \mu \approx \arg\min_{x'} f(x') + \frac{\gamma}{2} |x' - x|^2

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 towards the proximal point.
        momentum: m in [0, 1) of both moves, Nesterov's.
        weight_decay: L2 factor λ >= 0.
        inner_steps: L >= 0, exploring points; 0: gradient descent.
        inner_lr: Step size η' > 0 of the exploring point.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        noise: Thermal noise ε >= 0.
        seed: Of the noise.

    Reference:
        P. Chaudhari, A. Oberman, S. Osher, S. Soatto, G. Carlier, "Deep relaxation:
        partial differential equations for optimizing deep neural networks",
        Res. Math. Sci. 2018, arXiv 1704.04932.
    """

    traits = replace(
        _TRAITS,
        summary="Hamilton-Jacobi: descent towards the proximal point",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.05, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 20,
        inner_lr: Annotated[float, Uniform(0.02, 1.0)] = 0.25,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 0.01,
        scoping: float = 0.0,
        noise: float = 1e-8,
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
            preset="hj",
            alpha=1 - 1e-4,
            seed=seed,
        )


class HEAT(EntropySGD):
    r"""Descent on the loss smoothed by the heat equation.

    Entropy-SGD (preset "hj") that follows the arithmetic mean of x and all L exploring
    points; a stiff spring makes these nearly Gaussian around x.

    .. math:: \mu = \frac{1}{L + 1} \Big(x + \sum_{l=1}^{L} x'_l\Big)

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 towards the mean.
        momentum: m in [0, 1) of both moves, Nesterov's.
        weight_decay: L2 factor λ >= 0.
        inner_steps: L >= 0, exploring points; 0: gradient descent.
        inner_lr: Step size η' > 0 of the exploring point.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        noise: Thermal noise ε >= 0.
        seed: Of the noise.

    Reference:
        P. Chaudhari, A. Oberman, S. Osher, S. Soatto, G. Carlier, "Deep relaxation:
        partial differential equations for optimizing deep neural networks",
        Res. Math. Sci. 2018, arXiv 1704.04932.
    """

    traits = replace(
        _TRAITS,
        summary="follows the mean of all exploring points: heat equation",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.05, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 100)] = 100,
        inner_lr: Annotated[float, Uniform(0.02, 1.0)] = 0.1,
        gamma: Annotated[float, LogUniform(1e-2, 12.0)] = 10.0,
        scoping: float = 0.0,
        noise: Annotated[float, LogUniform(1e-5, 1e-3)] = 1e-4,
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
            preset="hj",
            seed=seed,
        )

    def weight(self, group: dict[str, Any], step: int) -> float:
        """Return 1/(points so far), x being the first."""
        return 1 / (step + 2)


class FP(Descent):
    r"""Implicit gradient descent: the gradient is that of where it leads.

    The fixed point p = ∇f(x - p/γ) is approached by L damped iterations.

    .. math:: p \leftarrow \tfrac34 p + \tfrac14 \nabla f(x - p/\gamma)
        \quad (L \text{ times}), \qquad v \leftarrow m v + p, \quad
        x \leftarrow x - \eta\,(p + m v), \qquad \gamma = \gamma_0 (1 + \gamma_1)^t

    with t = 1 in the first step.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        momentum: m in [0, 1), Nesterov's.
        weight_decay: L2 factor λ >= 0, part of the gradient.
        inner_steps: L >= 0, iterations; 0: gradient descent.
        gamma: Initial scope γ0 > 0.
        scoping: Growth γ1 >= 0 of the scope.

    Reference:
        P. Chaudhari, A. Oberman, S. Osher, S. Soatto, G. Carlier, "Deep relaxation:
        partial differential equations for optimizing deep neural networks",
        Res. Math. Sci. 2018, arXiv 1704.04932.
    """

    traits = replace(
        _TRAITS,
        summary="implicit gradient by damped fixed-point iterations",
        state="momentum != 0",
        draws_noise=False,
    )
    bounds = {
        **{k: BOUNDS[k] for k in ("lr", "momentum", "weight_decay", "scoping")},
        "inner_steps": "[0, inf)",
        "gamma": "(0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.01, 1.0)] = 0.1,
        momentum: float = 0.0,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 10,
        gamma: Annotated[float, LogUniform(1e-1, 1e2)] = 10.0,
        scoping: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
        }
        super().__init__(params, defaults)

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Iterate the implicit gradient, then follow it."""
        t, L = self.system["steps"] + 1, self.param_groups[0]["inner_steps"]
        c, p = self.x.clone(), self.decayed(self.g, self.x)
        self._home = c
        for _ in range(L):
            for group, part in self.parts:
                gamma = group["gamma"] * growth("exponential", group["scoping"], t)
                self.x[part] = c[part] - p[part] / gamma
            evaluate()
            p.mul_(0.75).add_(self.decayed(self.g, self.x), alpha=0.25)
        self.x.copy_(c)
        for group, part in self.parts:
            d, m = p[part], group["momentum"]
            if m:
                d = with_momentum(self.kept("momentum")[part], d, m, True)
            self.x[part].sub_(d, alpha=group["lr"])
