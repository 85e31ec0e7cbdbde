"""Energy-conserving descent at constant speed."""

from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.kernels import add_scaled
from lightning_ecd.optimizers.base import Number, ParamsT
from lightning_ecd.optimizers.ecd import ECD, FAMILY
from lightning_ecd.optimizers.hamiltonian import Hamiltonian, Isokinetic
from lightning_ecd.optimizers.particle import Particle, Span
from lightning_ecd.optimizers.scalars import where
from lightning_ecd.ranges import LogUniform

StepSize = Literal[
    "constant", "sign", "first_gradient", "theta", "adaptive", "elementwise"
]


class ECDq1(ECD):
    r"""Energy-conserving descent of constant speed, for stable likelihood ratios.

    A unit vector u is pushed downhill, the harder the nearer the loss is to F0, and
    rotated a little at every step. The speed does not fall at the minimum: `f_min`
    should lie strictly below it, η be large and the training be stopped early.

    .. math:: u \leftarrow r u, \qquad
        u \leftarrow u - \frac{\Delta t\, \eta n}{2 (n - 1)(F - F_0)}
        (1 - u u^T) \nabla F, \qquad \theta \leftarrow \theta + \Delta t\, u

    with :math:`r = 1/|u|`, then the rotation of `ECDSep`.

    Args:
        params: Parameters or groups; all groups form one particle.
        lr: Time step Δt > 0, the length of a step.
        f_min: Assumed minimum F0 of the loss, strictly below what can be reached.
        eta: Concentration exponent η > 0.
        nu: Rotation ν >= 0 per step; 0 draws nothing.
        gamma: Slowing γ >= 0: θ moves by Δt (F - F0)^γ u (ECD_gamma).
        scaled: Divide lr by √η and ν by √n, so that good values hardly depend on η
            and on the size of the model.
        step_size: What Δt is multiplied by: "constant" 1; "first_gradient"
            (|g(0)|² + 1e-8)^-½; "theta" 2 L (|g|² + 1e-8)^-½; "adaptive"
            2 (L/((|g|² + 1e-8) η))^½; "elementwise" 2 (L/((g_i² + 1e-8) n η))^½ for
            entry i; L is the loss with its L2 term. "sign": θ moves by the signs of u.
        conserve_energy: Bring |u| back to 1 every step (consEn).
        weight_decay: L2 factor w_d >= 0, part of F.
        self_tuning: Lower f_min whenever the loss falls to it.
        seed: Seed of the rotations.
        compat: Reproduce the released code rule for rule: 1 - u uᵀ acts within every
            tensor instead of globally, (F - F0)^(-1-γ) instead of ^(γ-1) in the kick,
            and the constructor's lr holds for all groups.

    Note:
        The projection and the exponent of the released code do not preserve the
        measure (F - F0)^(-ηn/2); see `compat`. A single parameter never turns. A
        negative loss L counts as 0 in the step sizes that use it.

    Reference:
        G. B. De Luca, B. Nachman, E. Silverstein, H. Zheng, "Optimizers for
        Stabilizing Likelihood-free Inference", 2025, arXiv 2501.18419.
    """

    traits = replace(
        FAMILY,
        summary="particle of constant speed, rotated at each step",
        paper="De Luca, Nachman, Silverstein, Zheng, 2025, arXiv 2501.18419",
    )
    bounds = {
        "lr": "(0, inf)",
        "f_min": "(-inf, inf)",
        "eta": "(0, inf)",
        "nu": "[0, inf)",
        "gamma": "[0, inf)",
        "weight_decay": "[0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1e1)] = 1e-1,
        f_min: float = 0.0,
        eta: Annotated[float, LogUniform(1.0, 1e5)] = 1e2,
        nu: Annotated[float, LogUniform(1e-7, 1.0)] = 1e-5,
        gamma: float = 0.0,
        scaled: bool = False,
        step_size: StepSize = "constant",
        conserve_energy: bool = True,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        self_tuning: bool = False,
        seed: int = 0,
        compat: bool = False,
    ):
        one_of(get_args(StepSize), step_size=step_size)
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "eta": eta,
            "nu": nu,
            "gamma": gamma,
            "scaled": scaled,
            "step_size": step_size,
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "self_tuning": self_tuning,
            "seed": seed,
            "compat": compat,
        }
        super().__init__(params, defaults)

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the isokinetic flow."""
        gamma, n = group["gamma"], self.particles[0].n
        exponent = -1 - gamma if group["compat"] else gamma - 1
        return Isokinetic(group["eta"], n, gamma, exponent)

    def move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Rescale; u ← u - k Δt (1 - u uᵀ) ∇F; θ ← θ + Δt u; rotate."""
        head, steps = particle.groups[0], self._steps(particle)
        energy, r = self.rescale(particle, H, V, E, live)
        k = where(live, H.kick(V, E), 0.0)
        d = where(live, H.drift(V, E, 1.0), 0.0)
        L = V + head["f_min"] + self.system["shift"]
        along = particle.along(r, apart=head["compat"])
        if head["step_size"] == "elementwise":
            self._move_by_entry(particle, steps, L, k, d, r, along)
            d_left: Number = 0.0
        else:
            for_kick, for_drift = self._step_sizes(head, L)
            k, d = k * for_kick, d * for_drift
            signed = head["step_size"] == "sign"
            once = not signed and not head["nu"]
            particle.kick_across(steps, k, r, along, d if once else None)
            if signed:
                for step, (q, _, x) in zip(steps, particle.parts, strict=True):
                    add_scaled(x, step * d, q.sign())
            d_left = 0.0 if signed else d
        if head["nu"]:
            nu = where(live, self._nu(particle), 0.0)
            seed, step = head["seed"], self.system["steps"]
            particle.drift_turn(steps, d_left, nu, seed, step)
        return energy, d

    def _step_sizes(self, group: dict[str, Any], L: Number) -> tuple[Number, Number]:
        """Return what multiplies Δt in the kick and in the drift."""
        kind = group["step_size"]
        if kind in ("constant", "sign"):
            return 1.0, 1.0
        particle = self.particles[0]
        g2: Number = 0.0
        for _, g, _ in particle.parts:
            g2 = g2 + particle.body.square(g)
        if kind == "first_gradient":
            first = self.system.setdefault("first_gradient", (g2 + 1e-8) ** -0.5)
            return first, first
        L = where(L > 0, L, 0.0)
        if kind == "theta":
            theta = 2 * L / (g2 + 1e-8) ** 0.5
            return theta, theta
        for_kick = 2 * (L / ((g2 + 1e-8) * group["eta"])) ** 0.5
        return for_kick, for_kick * ((g2 + 1e-8) / where(g2 > 0, g2, 1e-8)) ** 0.5

    def _move_by_entry(
        self,
        particle: Particle,
        steps: list[Number],
        L: Number,
        k: Number,
        d: Number,
        r: Number,
        along: list[Number],
    ) -> None:
        """Kick and drift with a step size of its own for every entry."""
        head = particle.groups[0]
        u = particle.fold().mul_(r)
        factor = 2 * (where(L > 0, L, 0.0) / (particle.n * head["eta"])) ** 0.5
        for group, step, dot, (q, g, x) in zip(
            particle.groups, steps, along, particle.parts, strict=True
        ):
            sizes = (g.square() + 1e-8).rsqrt_()
            G = g + group["weight_decay"] * x
            add_scaled(G, -dot, q)
            add_scaled(q, -step * k * factor, sizes * G)
            add_scaled(x, step * d * factor, sizes * q)
        particle.square = particle.own["p2"] = particle.body.square(u)

    def _layout(self) -> list[tuple[list[dict[str, Any]], list[Span]]]:
        compat = self.param_groups[0]["compat"]
        return self._by_tensor() if compat else super()._layout()

    def _extra_energy(self, group: dict[str, Any]) -> float:
        return 0.0

    def _lr(self, group: dict[str, Any]) -> float:
        return self.defaults["lr"] if group["compat"] else group["lr"]
