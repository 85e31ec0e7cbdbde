"""Entropy-SGD and Entropy-Adam: descent on the local entropy of the loss."""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.flat import square_norm
from lightning_ecd.optimizers.base import ParamsT, with_momentum
from lightning_ecd.optimizers.exploration import FAMILY, LocalEntropy
from lightning_ecd.ranges import Integers, LogUniform, Uniform

Preset = Literal["default", "lua", "python", "paper", "hj"]
Schedule = Literal["constant", "exponential", "linear", "quadratic", "bounded"]
NoiseScale = Literal["sqrt(2 inner_lr)", "sqrt(inner_lr)"]
Decay = Literal["inside", "outside", "none"]
FirstMomentum = Literal["torch", "python"]

_TINY = 1e-60
#: Stands for the value of `momentum` in a preset.
_MOMENTUM = "momentum"
_LUA: dict[str, Any] = {
    "inner_wd": "outside",
    "outer_wd": False,
    "outer_momentum": 0.0,
    "inner_momentum": _MOMENTUM,
    "reset_inner_momentum": True,
    "alpha": 0.25,
    "noise_scale": "sqrt(2 inner_lr)",
    "t0": 1,
    "gamma_max": math.inf,
    "skip_first_eval": False,
    "first_momentum": "torch",
    "force_in_momentum": False,
}
#: The switches of every preset (specification: what the paper and its codes do).
PRESETS: dict[str, dict[str, Any]] = {
    "default": {**_LUA, "skip_first_eval": True, "gamma_max": None},
    "lua": _LUA,
    "python": {
        **_LUA,
        "inner_wd": "inside",
        "outer_wd": True,
        "outer_momentum": _MOMENTUM,
        "t0": 0,
        "first_momentum": "python",
    },
    "paper": {
        **_LUA,
        "inner_wd": "inside",
        "inner_momentum": 0.0,
        "alpha": 0.75,
        "noise_scale": "sqrt(inner_lr)",
        "t0": 0,
        "skip_first_eval": True,
    },
    "hj": {
        **_LUA,
        "inner_wd": "inside",
        "outer_momentum": _MOMENTUM,
        "reset_inner_momentum": False,
        "force_in_momentum": True,
    },
}
BOUNDS = {
    "lr": "(0, inf)",
    "momentum": "[0, 1)",
    "dampening": "[0, 1]",
    "weight_decay": "[0, inf)",
    "inner_steps": "[0, inf)",
    "inner_lr": "(0, inf)",
    "gamma": "[0, inf)",
    "scoping": "[0, inf)",
    "noise": "[0, inf)",
    "alpha": "(0, 1]",
    "outer_momentum": "[0, 1)",
    "inner_momentum": "[0, 1)",
    "gamma_max": "(0, inf]",
    "temperature": "[0, inf)",
    "lr_decay": "[0, inf)",
    "rho": "[0, inf)",
    "diagnostics_every": "[0, inf)",
}


def resolved(preset: str, **switches: Any) -> dict[str, Any]:
    """Return the switches of a preset, those that are not None taking its place.

    Args:
        preset: One of `PRESETS`.
        switches: Every switch, and `momentum` and `inner_lr`.
    """
    one_of(PRESETS, preset=preset)
    momentum, inner_lr = switches["momentum"], switches["inner_lr"]
    chosen = {k: v for k, v in switches.items() if v is not None}
    found = {**PRESETS[preset], **chosen}
    found = {k: momentum if v == _MOMENTUM else v for k, v in found.items()}
    if found["gamma_max"] is None:
        found["gamma_max"] = 1 / inner_lr if inner_lr > 0 else math.inf
    one_of(get_args(Decay), inner_wd=found["inner_wd"])
    one_of(get_args(NoiseScale), noise_scale=found["noise_scale"])
    one_of(get_args(FirstMomentum), first_momentum=found["first_momentum"])
    one_of((0, 1), t0=found["t0"])
    return found


class EntropySGD(LocalEntropy):
    r"""Gradient descent on the local entropy, which prefers wide valleys.

    L exploring points x' drift around the parameters x by Langevin dynamics, held by
    a spring of stiffness γ; x then moves towards their running mean μ. The spring
    stiffens from step to step (scoping), from a smooth landscape to the loss itself.

    .. math:: x' \leftarrow x' - \eta'\big(\nabla f(x') - \gamma (x - x')\big)
        + \sqrt{2 \eta'}\,\varepsilon\,z, \qquad
        \mu \leftarrow (1 - \alpha)\,\mu + \alpha\,x' \quad (L \text{ times})

    .. math:: x \leftarrow x - \eta\,(x - \mu), \qquad
        \gamma = \gamma_0 (1 + \gamma_1)^t

    ∇f goes through the inner momentum; the spring, decay and noise do only with
    `force_in_momentum`. With L = 0 it is torch's SGD, bit for bit (but for preset
    "python").

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 of the parameters; 1 goes to the mean.
        momentum: m in [0, 1), of the base rule and, by the preset, of inner and outer
            moves.
        dampening: d in [0, 1]; 0 with `nesterov`.
        weight_decay: L2 factor λ >= 0.
        nesterov: Nesterov momentum instead of heavy-ball.
        inner_steps: L >= 0, exploring points; each sees a mini-batch of its own.
        inner_lr: Step size η' > 0 of the exploring point.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        noise: Thermal noise ε >= 0.
        preset: Which publication the switches below follow: "lua" (the released code
            that made the paper's numbers), "python" (the released port), "paper"
            (Algorithm 1), "hj" (Chaudhari et al. 2018); "default" is "lua" without
            its wasted evaluation at x and with `gamma_max`.
        scope_schedule: γ/γ0 is "constant" 1, "exponential" (1 + γ1)^t, "linear"
            1 + γ1 t, "quadratic" 1 + γ1 t², "bounded" 1 - exp(-γ1 t).
        gamma_max: Largest γ > 0; by default 1/η', in the other presets none.
        alpha: Weight α in (0, 1] of the newest point in the mean.
        inner_wd: Where λ x' enters: "inside" the momentum, "outside" or "none".
        outer_wd: Add λ x to x - μ.
        outer_momentum: Of the outer move, in [0, 1).
        inner_momentum: Of the exploring point, in [0, 1).
        inner_nesterov: Nesterov for the exploring point; default: `nesterov`.
        reset_inner_momentum: Begin every exploration at rest.
        noise_scale: Noise per exploring step over ε.
        t0: Exponent t of the first step, 0 or 1.
        skip_first_eval: Let the evaluation at x be the first exploring gradient: L
            evaluations per step instead of L + 1.
        first_momentum: "torch", or "python": the outer momentum starts from the first
            gradient.
        force_in_momentum: Spring and noise go through the inner momentum.
        gamma_in_outer: x - x + η γ (μ - x), the paper's line 7, instead of η.
        match_norm: γ is |∇f(x)|/|x - μ| of the step before, at most `gamma_max`,
            instead of the schedule. Wants an inner momentum: without, γ|x - μ| stays
            below |∇f(x)| whatever γ is. Waits for an accelerator once per step.
        rho: ρ >= 0: add ρ ∇f(x) to x - μ, descending ρ f - F.
        temperature: T >= 0: Langevin noise √(2 η T) of the outer move.
        lr_decay: η is divided by 1 + t `lr_decay`.
        diagnostics_every: Steps between diagnostics; 0: none.
        seed: Of the noise.

    Note:
        Relative to the loss the scope is γ only if `inner_momentum` is 0 or
        `force_in_momentum` is set; otherwise (1 - m) γ, as in the released code.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838.
    """

    traits = replace(
        FAMILY,
        summary="follows the mean of L exploring points: prefers wide valleys",
        paper="Chaudhari et al., ICLR 2017, arXiv 1611.01838",
        state="(inner_steps == 0) * (momentum != 0) + (inner_steps > 0) * "
        "((outer_momentum != 0) + (inner_momentum != 0 and not reset_inner_momentum))",
    )
    bounds = BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.05, 1.0)] = 1.0,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        nesterov: bool = True,
        inner_steps: Annotated[int, Integers(5, 20)] = 20,
        inner_lr: Annotated[float, Uniform(0.02, 1.0)] = 0.1,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 1e-4,
        scoping: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        noise: Annotated[float, LogUniform(1e-5, 1e-3)] = 1e-4,
        preset: Preset = "default",
        scope_schedule: Schedule = "exponential",
        gamma_max: float | None = None,
        alpha: float | None = None,
        inner_wd: Decay | None = None,
        outer_wd: bool | None = None,
        outer_momentum: float | None = None,
        inner_momentum: float | None = None,
        inner_nesterov: bool | None = None,
        reset_inner_momentum: bool | None = None,
        noise_scale: NoiseScale | None = None,
        t0: int | None = None,
        skip_first_eval: bool | None = None,
        first_momentum: FirstMomentum | None = None,
        force_in_momentum: bool | None = None,
        gamma_in_outer: bool = False,
        match_norm: bool = False,
        rho: float = 0.0,
        temperature: float = 0.0,
        lr_decay: float = 0.0,
        diagnostics_every: int = 50,
        seed: int = 0,
    ):
        if nesterov and momentum and dampening:
            raise ValueError(f"dampening must be 0 with nesterov, got {dampening}")
        one_of(get_args(Schedule), scope_schedule=scope_schedule)
        switches = resolved(
            preset,
            momentum=momentum,
            inner_lr=inner_lr,
            gamma_max=gamma_max,
            alpha=alpha,
            inner_wd=inner_wd,
            outer_wd=outer_wd,
            outer_momentum=outer_momentum,
            inner_momentum=inner_momentum,
            inner_nesterov=nesterov if inner_nesterov is None else inner_nesterov,
            reset_inner_momentum=reset_inner_momentum,
            noise_scale=noise_scale,
            t0=t0,
            skip_first_eval=skip_first_eval,
            first_momentum=first_momentum,
            force_in_momentum=force_in_momentum,
        )
        defaults = {
            "lr": lr,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "noise": noise,
            "scope_schedule": scope_schedule,
            "gamma_in_outer": gamma_in_outer,
            "match_norm": match_norm,
            "rho": rho,
            "temperature": temperature,
            "lr_decay": lr_decay,
            "diagnostics_every": diagnostics_every,
            "seed": seed,
            **switches,
        }
        super().__init__(params, defaults)

    def keeps_first(self) -> bool:
        """Return whether the first gradient is needed later."""
        return any(
            group["rho"] or group["match_norm"] or self._starts_from_gradient(group)
            for group in self.param_groups
        )

    def direction(
        self, group: dict[str, Any], c: Tensor, mean: Tensor, first: Tensor | None
    ) -> Tensor:
        """Return D = x - μ + ρ ∇f(x) + λ x, with the switches."""
        d = super().direction(group, c, mean, first)
        gamma = self.scope(group)
        if group["match_norm"] and first is not None:
            ratio = square_norm(first) / (square_norm(d) + _TINY)
            group.setdefault("system", {})["matched"] = float(ratio) ** 0.5
        if group["gamma_in_outer"]:
            d.mul_(gamma)
        if group["rho"] and first is not None:
            d.add_(first, alpha=group["rho"])
        if group["outer_wd"] and group["weight_decay"]:
            d.add_(c, alpha=group["weight_decay"])
        return d

    def scope(self, group: dict[str, Any]) -> float:
        """Return γ of this step, by the schedule or from the step before."""
        matched = group.get("system", {}).get("matched")
        if group["match_norm"] and matched is not None:
            return min(float(matched), group["gamma_max"])
        return super().scope(group)

    def follow(
        self,
        group: dict[str, Any],
        part: slice,
        c: Tensor,
        d: Tensor,
        first: Tensor | None,
    ) -> None:
        """Set x ← x - η D, with noise and outer momentum."""
        explored = group["inner_steps"] > 0
        lr = group["lr"] / (1 + self.system["steps"] * group["lr_decay"])
        if explored and lr and group["temperature"]:
            z = self.outer_noise(group, part, d)
            d.add_(z, alpha=(2 * group["temperature"] / lr) ** 0.5)
        momentum = group["outer_momentum"] if explored else group["momentum"]
        if momentum:
            d = self._with_momentum(group, part, d, momentum, first)
        torch.add(c, d, alpha=-lr, out=self.x[part])

    def _with_momentum(
        self,
        group: dict[str, Any],
        part: slice,
        d: Tensor,
        momentum: float,
        first: Tensor | None,
    ) -> Tensor:
        """Return the direction with momentum, as torch's SGD adds it."""
        own, v = group.setdefault("system", {}), self.kept("momentum")[part]
        fresh = 1 - group["dampening"]
        if self._starts_from_gradient(group) and first is not None:
            v.copy_(first)
        elif "moving" not in own:
            fresh = 1.0
        own["moving"] = 1
        return with_momentum(v, d, momentum, group["nesterov"], fresh)

    def _starts_from_gradient(self, group: dict[str, Any]) -> bool:
        """Return whether this step is the first of preset "python"."""
        first = "moving" not in group.get("system", {})
        return group["first_momentum"] == "python" and first
