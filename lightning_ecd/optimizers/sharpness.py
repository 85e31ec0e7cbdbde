r"""Sharpness-aware minimization: the gradient at the worst point nearby.

========  ==================  ==============================================
symbol    variable            shape and meaning
========  ==================  ==============================================
w         ``x``               (n,) parameters
g         ``g``               (n,) gradient at w
e         ``e``               (n,) way to the worst point within ρ
g_s       ``g``               (n,) gradient at w + e, on the same mini-batch
v         ``momentum``        (n,) momentum
========  ==================  ==============================================
"""

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from lightning_ecd.flat import dot, square_norm
from lightning_ecd.optimizers.base import (
    Descent,
    Evaluate,
    Number,
    ParamsT,
    with_decay,
    with_momentum,
)
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.ranges import Integers, LogUniform, Uniform

_TINY = 1e-12
_FAMILY = Traits(
    family="sharpness",
    summary="",
    paper="",
    closure=True,
    evaluations="2",
    minibatches="1",
    state="momentum != 0",
    accumulation=False,
    scaler=False,
)
_BOUNDS = {
    "lr": "(0, inf)",
    "momentum": "[0, 1)",
    "weight_decay": "[0, inf)",
    "rho": "[0, inf)",
}


class _Sharpness(Descent):
    """What looks for the worst point nearby, then steps as SGD does."""

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Look at the worst point nearby, come back and step by its gradient."""
        self._look(evaluate)
        self._descend(self.g)

    def ascent(self) -> Tensor:
        """Return e, shape (n,)."""
        return self.g * self._radius(square_norm(self.g) ** 0.5)

    def _radius(self, length: Number) -> Number | Tensor:
        """Return ρ over a length, of every parameter where groups differ in ρ."""
        radii = [group["rho"] for group in self.param_groups]
        if len(set(radii)) == 1:
            return radii[0] / (length + _TINY)
        each = torch.empty_like(self.x)
        for group, part in self.parts:
            each[part] = group["rho"]
        return each / (length + _TINY)

    def _look(self, evaluate: Evaluate) -> None:
        """Put the gradient at w + e into g, leaving w as it was."""
        w = self._home = self.x.clone()
        self.x.add_(self.ascent())
        worst = evaluate()
        self.x.copy_(w)
        self.info = {"worst": worst}

    def _descend(self, gradient: Tensor) -> None:
        """Step as torch's SGD does, by a gradient of shape (n,)."""
        for group, part in self.parts:
            x, m = self.x[part], group["momentum"]
            d = with_decay(gradient[part], x, group["weight_decay"])
            if m:
                v = self.kept("momentum")[part]
                d = with_momentum(v, d, m, group["nesterov"])
            x.sub_(d, alpha=group["lr"])


class SAM(_Sharpness):
    r"""Sharpness-aware minimization on SGD.

    .. math:: e = \rho\,\frac{\nabla f(w)}{|\nabla f(w)|}, \quad
        g_s = \nabla f(w + e), \quad v \leftarrow m v + g_s + \lambda w, \quad
        w \leftarrow w - \eta\,v

    Both gradients are of the same mini-batch; |·| is over all parameters. With
    `nesterov` :math:`g_s + \lambda w + m v` takes the place of v in the move. `info`
    holds ``worst``, the loss at w + e.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        momentum: m in [0, 1).
        weight_decay: L2 factor λ >= 0, at w.
        nesterov: Nesterov momentum instead of heavy-ball.
        rho: Radius ρ >= 0.

    Reference:
        P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur, "Sharpness-aware minimization
        for efficiently improving generalization", ICLR 2021, arXiv 2010.01412.
    """

    traits = replace(
        _FAMILY,
        summary="SGD by the gradient at the worst point nearby",
        paper="Foret, Kleiner, Mobahi, Neyshabur, ICLR 2021, arXiv 2010.01412",
    )
    bounds = _BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        nesterov: bool = False,
        rho: Annotated[float, LogUniform(1e-2, 1.0)] = 0.05,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "rho": rho,
        }
        super().__init__(params, defaults)


class ASAM(_Sharpness):
    r"""Adaptive SAM, whose neighbourhood scales with the weights.

    .. math:: T = |w| + \eta_T, \qquad e = \rho\,\frac{T^2 \nabla f(w)}{|T \nabla f(w)|}

    then as `SAM`. T is 1 for what is no weight: parameters whose name does not end in
    "weight", or, where the optimizer was not given names, those of fewer than two
    dimensions.

    Args:
        params: Parameters, groups, or pairs of name and parameter.
        lr: Step size η > 0.
        momentum: m in [0, 1).
        weight_decay: L2 factor λ >= 0, at w.
        nesterov: Nesterov momentum instead of heavy-ball.
        rho: Radius ρ >= 0.
        offset: η_T >= 0.

    Reference:
        J. Kwon, J. Kim, H. Park, I. K. Choi, "ASAM: adaptive sharpness-aware
        minimization for scale-invariant learning of deep neural networks", ICML 2021,
        arXiv 2102.11600.
    """

    traits = replace(
        _FAMILY,
        summary="SAM in a neighbourhood that scales with the weights",
        paper="Kwon, Kim, Park, Choi, ICML 2021, arXiv 2102.11600",
    )
    bounds = {**_BOUNDS, "offset": "[0, inf)"}

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        nesterov: bool = False,
        rho: Annotated[float, LogUniform(1e-2, 2.0)] = 0.5,
        offset: float = 0.01,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "rho": rho,
            "offset": offset,
        }
        super().__init__(params, defaults)

    def ascent(self) -> Tensor:
        """Return e = ρ T² g/|T g|, shape (n,)."""
        T = torch.ones_like(self.x)
        views = iter(self.flat.views(T))
        for group in self.param_groups:
            names = group.get("param_names", [None] * len(group["params"]))
            for name, p in zip(names, group["params"], strict=True):
                if not p.requires_grad:
                    continue
                view = next(views)
                if p.dim() > 1 if name is None else name.endswith("weight"):
                    torch.add(p.detach().abs(), group["offset"], out=view)
        scaled = T * self.g
        length = square_norm(scaled) ** 0.5
        return scaled.mul_(T).mul_(self._radius(length))


class LookSAM(_Sharpness):
    r"""SAM whose second gradient is taken every k-th step only.

    The component of g_s orthogonal to g changes slowly; in between it is used again.

    .. math:: g_v = g_s - \frac{g_s \cdot g}{|g|^2}\,g \quad \text{(every k-th step)},
        \qquad g_s = g + \alpha\,\frac{|g|}{|g_v|}\,g_v \quad \text{(in between)}

    then as `SAM`, whose ``worst`` is in `info` after the steps that look.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        momentum: m in [0, 1).
        weight_decay: L2 factor λ >= 0, at w.
        nesterov: Nesterov momentum instead of heavy-ball.
        rho: Radius ρ >= 0.
        every: k >= 1, steps from one look to the next.
        alpha: α >= 0, weight of the kept component.

    Reference:
        Y. Liu, S. Mai, X. Chen, C.-J. Hsieh, Y. You, "Towards efficient and scalable
        sharpness-aware minimization", CVPR 2022, arXiv 2203.02714.
    """

    traits = replace(
        _FAMILY,
        summary="SAM that looks around every k-th step",
        paper="Liu, Mai, Chen, Hsieh, You, CVPR 2022, arXiv 2203.02714",
        evaluations="1 + (step % every == 0)",
        state="1 + (momentum != 0)",
    )
    bounds = {**_BOUNDS, "every": "[1, inf)", "alpha": "[0, inf)"}

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        nesterov: bool = False,
        rho: Annotated[float, LogUniform(1e-2, 1.0)] = 0.05,
        every: Annotated[int, Integers(2, 10)] = 5,
        alpha: Annotated[float, Uniform(0.1, 1.0)] = 0.7,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "rho": rho,
            "every": every,
            "alpha": alpha,
        }
        super().__init__(params, defaults)

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Look around every k-th step, else remember what was seen."""
        head, self.info = self.param_groups[0], {}
        if self.system["steps"] % head["every"] == 0:
            g = self.g.clone()
            self._look(evaluate)
            along = dot(self.g, g) / (square_norm(g) + _TINY**2)
            self.vectors["orthogonal"] = (self.g - along * g).to(self.new_vector())
            self._descend(self.g)
            return
        seen = self.vectors["orthogonal"]
        ratio = (square_norm(self.g) / (square_norm(seen) + _TINY**2)) ** 0.5
        self._descend(self.g + head["alpha"] * ratio * seen)
