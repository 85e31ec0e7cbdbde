"""Several fast steps, of whose way something is kept: ProxSGD, Lookahead."""

from dataclasses import replace
from typing import Annotated, Any

from torch import Tensor

from lightning_ecd.optimizers.base import ParamsT
from lightning_ecd.optimizers.entropy import EntropySGD
from lightning_ecd.ranges import Integers, LogUniform, Uniform


class ProxSGD(EntropySGD):
    r"""SGD held by a spring at the point of L steps before, to which it never returns.

    .. math:: q = \nabla f(x) + \lambda x + \gamma (x - x_c), \quad
        u \leftarrow m u + q, \quad x \leftarrow x - \eta\,(q + m u)
        \qquad (L \text{ times})

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        momentum: m in [0, 1), Nesterov's.
        weight_decay: L2 factor λ >= 0.
        inner_steps: L >= 0, steps between new centers x_c; 0: SGD without a spring.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        gamma_max: Largest γ > 0.

    Reference:
        P. Chaudhari et al., "Parle: parallelizing stochastic gradient descent", 2017,
        arXiv 1707.00424.
    """

    traits = replace(
        EntropySGD.traits,
        summary="SGD with a spring to where it was L steps ago",
        paper="Chaudhari et al., 2017, arXiv 1707.00424",
        evaluations="inner_steps + (inner_steps == 0)",
        minibatches="inner_steps + (inner_steps == 0)",
        state="momentum != 0",
        draws_noise=False,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 20,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 0.01,
        scoping: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        gamma_max: float = 1.0,
    ):
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay=weight_decay,
            inner_steps=inner_steps,
            gamma=gamma,
            scoping=scoping,
            noise=0.0,
            preset="hj",
            outer_momentum=0.0,
            gamma_max=gamma_max,
            skip_first_eval=True,
        )

    def inner_rate(self, group: dict[str, Any]) -> float:
        """Return η: there is only one."""
        return group["lr"]

    def follow(
        self,
        group: dict[str, Any],
        part: slice,
        c: Tensor,
        d: Tensor,
        first: Tensor | None,
    ) -> None:
        """Stay where the exploring point is."""
        if group["inner_steps"] == 0:
            super().follow(group, part, c, d, first)


class Lookahead(EntropySGD):
    r"""SGD of k steps, of whose way only a part is kept.

    Entropy-SGD without spring and noise, whose mean is the last point:

    .. math:: u \leftarrow m u + \nabla f(x') + \lambda x', \quad
        x' \leftarrow x' - \eta'\,u \quad (k \text{ times}), \qquad
        x \leftarrow x + a\,(x' - x)

    With `nesterov` :math:`\nabla f(x') + \lambda x' + m u` takes the place of u in the
    fast moves; u lives on from step to step.

    Args:
        params: Parameters or groups.
        lr: Part a > 0 of the way that is kept.
        momentum: m in [0, 1) of the fast steps.
        weight_decay: L2 factor λ >= 0.
        nesterov: Nesterov momentum instead of heavy-ball.
        inner_steps: k >= 0, fast steps; 0: SGD of step size a.
        inner_lr: Step size η' > 0 of the fast steps.

    Reference:
        M. Zhang, J. Lucas, G. Hinton, J. Ba, "Lookahead optimizer: k steps forward, 1
        step back", NeurIPS 2019, arXiv 1907.08610.
    """

    traits = replace(
        EntropySGD.traits,
        summary="k fast steps forward, a part of them kept",
        paper="Zhang, Lucas, Hinton, Ba, NeurIPS 2019, arXiv 1907.08610",
        evaluations="inner_steps + (inner_steps == 0)",
        minibatches="inner_steps + (inner_steps == 0)",
        state="momentum != 0",
        draws_noise=False,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.2, 1.0)] = 0.5,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        nesterov: bool = False,
        inner_steps: Annotated[int, Integers(5, 20)] = 5,
        inner_lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
    ):
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            inner_steps=inner_steps,
            inner_lr=inner_lr,
            gamma=0.0,
            scoping=0.0,
            noise=0.0,
            alpha=1.0,
            inner_wd="inside",
            reset_inner_momentum=False,
        )
