"""The local entropy explored by energy-conserving dynamics."""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers.base import Number, ParamsT
from lightning_ecd.optimizers.entropy import BOUNDS, resolved
from lightning_ecd.optimizers.exploration import FAMILY, LocalEntropy
from lightning_ecd.optimizers.hamiltonian import Hamiltonian, Isokinetic, Separable
from lightning_ecd.optimizers.particle import Particle
from lightning_ecd.optimizers.scalars import where
from lightning_ecd.randomness import mixed
from lightning_ecd.ranges import Integers, LogUniform, Uniform

Dynamics = Literal["separable", "constant_speed"]


class EntropyECD(LocalEntropy):
    r"""Entropy-SGD whose exploring points move by energy-conserving dynamics.

    In place of Langevin dynamics a particle moves in
    :math:`U(x') = f(x') + \frac{\gamma}{2} |x' - x|^2`, by the rule of `ECDSep` or
    `ECDq1`. It starts downhill from x at every step, and turns at random. Its speed
    does not depend on how steep the loss is, and exploring does not cool down.

    .. math:: \mu = \langle x' \rangle_{\text{trajectory}}, \qquad
        x \leftarrow x - \eta\,(x - \mu)

    A mixing trajectory visits x' with density :math:`(U - F_0)^{-\eta_E n/2}`; where f
    is quadratic its mean is the proximal point, as that of the local entropy is.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 of the parameters; 1 goes to the mean.
        weight_decay: L2 factor λ >= 0, part of U.
        inner_steps: L >= 0, exploring points; 0: gradient descent.
        inner_lr: Time step Δt > 0 of the particle.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of the scope.
        gamma_max: Largest γ > 0; default: none.
        alpha: Weight α in (0, 1] of the newest point in the mean; default: all points
            weigh the same.
        dynamics: "separable" or "constant_speed".
        f_min: Assumed minimum F0 of U.
        extra_energy: Initial |p|² = δE >= 0 of the separable particle.
        eta: Concentration exponent η_E > 0.
        nu: Rotation ν >= 0 per point, as `ECDSep`'s with `scaled`: it is divided by √n,
            so that ν is about the angle.
        skip_first_eval: Let the evaluation at x be the first of the L.
        diagnostics_every: Steps between diagnostics; 0: none.
        seed: Of the turns.

    Note:
        Where U does not exceed F0 on a mini-batch the particle rests for a point.

    Reference:
        The local entropy: P. Chaudhari et al., ICLR 2017, arXiv 1611.01838. The
        dynamics: G. B. De Luca, A. Gatti, E. Silverstein, 2023, arXiv 2306.00352.
        Their combination is this project's.
    """

    traits = replace(
        FAMILY,
        summary="Entropy-SGD explored by an energy-conserving particle",
        paper="this project, after arXiv 1611.01838 and arXiv 2306.00352",
        needs_loss=True,
        state="0",
        clipping="clipped gradients do not conserve the energy of the explorations",
    )
    bounds = {
        **{name: BOUNDS[name] for name in ("lr", "weight_decay", "inner_steps")},
        **{name: BOUNDS[name] for name in ("inner_lr", "gamma", "scoping")},
        **{name: BOUNDS[name] for name in ("gamma_max", "alpha", "diagnostics_every")},
        "f_min": "(-inf, inf)",
        "extra_energy": "[0, inf)",
        "eta": "(0, inf)",
        "nu": "[0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.05, 1.0)] = 1.0,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        inner_steps: Annotated[int, Integers(5, 20)] = 20,
        inner_lr: Annotated[float, LogUniform(1e-3, 1e1)] = 0.1,
        gamma: Annotated[float, LogUniform(1e-5, 3.0)] = 1e-4,
        scoping: Annotated[float, LogUniform(1e-5, 1e-2)] = 1e-3,
        gamma_max: float | None = None,
        alpha: float | None = None,
        dynamics: Dynamics = "separable",
        f_min: float = 0.0,
        extra_energy: Annotated[float, Uniform(0.0, 10.0)] = 0.0,
        eta: Annotated[float, Uniform(1.0, 5.0)] = 1.0,
        nu: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        skip_first_eval: bool = True,
        diagnostics_every: int = 50,
        seed: int = 0,
    ):
        one_of(get_args(Dynamics), dynamics=dynamics)
        switches = resolved(
            "lua",
            momentum=0.0,
            inner_lr=inner_lr,
            gamma_max=gamma_max,
            skip_first_eval=skip_first_eval,
        )
        defaults = {
            **switches,
            "lr": lr,
            "weight_decay": weight_decay,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "alpha": alpha,
            "dynamics": dynamics,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "eta": eta,
            "nu": nu,
            "scope_schedule": "exponential",
            "noise": 0.0,
            "diagnostics_every": diagnostics_every,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def hamiltonian(self) -> Hamiltonian:
        """Return what the particle moves by."""
        head = self.param_groups[0]
        if head["dynamics"] == "separable":
            return Separable(head["eta"], 1.0)
        return Isokinetic(head["eta"], self.x.numel(), 0.0, -1.0)

    def stiffest(self, group: dict[str, Any]) -> float:
        """Return inf: the speed of the particle is bounded."""
        return math.inf

    def weight(self, group: dict[str, Any], step: int) -> float:
        """Return the weight of the newest point in the mean."""
        alpha = group["alpha"]
        return 1 / (step + 2) if alpha is None else alpha

    def set_out(self) -> None:
        """Make a particle at rest."""
        q = self.work("particle").zero_()
        body = self.body_of(self.x) if q.dtype == self.x.dtype else Eager()
        decays = [{"weight_decay": g["weight_decay"]} for g in self.param_groups]
        vectors = self.x, self.g, q
        self._particle = Particle(
            decays, self.flat.spans, *vectors, body, self.flat.host
        )

    def wander(
        self,
        step: int,
        loss: Number,
        x: Tensor,
        g: Tensor,
        c: Tensor,
        mean: Tensor,
        u: Tensor,
    ) -> None:
        """Rescale to the energy shell, kick, drift, turn."""
        head, particle, H = self.param_groups[0], self._particle, self.hamiltonian()
        V = loss - head["f_min"] + particle.decay() + self._pull(c)
        live = V > 0
        V = where(live, V, 1.0)
        if "p2" not in particle.own:
            self._energy = H.initial(V, head["extra_energy"])
            particle.q.sub_(g)
            particle.launch(H.kinetic(V, self._energy))
        self._move(particle, H, V, live, step)
        for group, part in self.parts:
            weight = self.weight(group, step)
            mean[part].mul_(1 - weight).add_(x[part], alpha=weight)

    def _pull(self, c: Tensor) -> Number:
        """Add the spring's force to the gradient; return its energy."""
        energy: Number = 0.0
        for group, part in self.parts:
            away, gamma = self.x[part] - c[part], self.scope(group)
            self.g[part].add_(away, alpha=gamma)
            energy = energy + 0.5 * gamma * self._particle.body.square(away)
        return energy

    def _move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        live: bool | Tensor,
        step: int,
    ) -> None:
        """Take a time step, as `ECDSep` and `ECDq1` do."""
        head, steps = self.param_groups[0], [g["inner_lr"] for g in self.param_groups]
        E, p2 = self._energy, particle.own["p2"]
        shell = H.kinetic(V, E)
        usable = (shell > 0) & (p2 > 0)
        r = (where(usable, shell, 1.0) / where(usable, p2, 1.0)) ** 0.5
        k = where(live, H.kick(V, E), 0.0)
        if head["dynamics"] == "constant_speed":
            p2 = particle.kick_across(steps, k, r, particle.along(r))
        else:
            p2 = particle.kick(steps, k, r)
        d = where(live, H.drift(V, E, p2), 0.0)
        turn = where(live, head["nu"] / math.sqrt(max(particle.n, 1)), 0.0)
        if head["nu"]:
            counter = self.system["steps"] * head["inner_steps"] + step
            particle.drift_turn(steps, d, turn, mixed(head["seed"]), counter)
        else:
            particle.drift(steps, d)

    def follow(
        self,
        group: dict[str, Any],
        part: slice,
        c: Tensor,
        d: Tensor,
        first: Tensor | None,
    ) -> None:
        """Set x ← x - η D."""
        torch.add(c, d, alpha=-group["lr"], out=self.x[part])
