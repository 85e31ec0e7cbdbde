"""Separable energy-conserving descent, first order and leapfrog."""

from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.kernels import add_scaled
from lightning_ecd.optimizers.base import Number, ParamsT
from lightning_ecd.optimizers.ecd import ECD, FAMILY
from lightning_ecd.optimizers.hamiltonian import Absolute, Hamiltonian, Separable
from lightning_ecd.optimizers.particle import Particle, Span
from lightning_ecd.optimizers.scalars import where
from lightning_ecd.ranges import LogUniform, Uniform

Rule = Literal["standard", "absolute", "polyak"]

_BOUNDS = {
    "lr": "(0, inf)",
    "f_min": "(-inf, inf)",
    "extra_energy": "[0, inf)",
    "eta": "[1, inf)",
    "nu": "[0, inf)",
    "noise_damping": "[0, inf)",
    "weight_decay": "[0, inf)",
    "energy_batches": "[1, inf)",
}


class _Separable(ECD):
    """What the two integrators of the separable Hamiltonian share."""

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the separable Hamiltonian."""
        return Separable(group["eta"], group.get("s", 1.0))

    def _damped_nu(self, particle: Particle, V: Number, E: Number) -> Number:
        """Return ν of this step, (V (s + δE)/e^E)^γ times that of the start."""
        nu, head = self._nu(particle), particle.groups[0]
        if not head["noise_damping"]:
            return nu
        start = head.get("s", 1.0) + self._extra_energy(head)
        return nu * ((V / E) ** head["eta"] * start) ** head["noise_damping"]

    def _drift(
        self,
        particle: Particle,
        V: Number,
        E: Number,
        d: Number,
        live: bool | Tensor,
        begun: Number = 1,
    ) -> None:
        """Drift, and rotate the momentum if ν is not 0 and it has `begun`."""
        head, steps = particle.groups[0], self._steps(particle)
        if head["nu"]:
            nu = where(live, self._damped_nu(particle, V, E) * begun, 0.0)
            particle.drift_turn(steps, d, nu, head["seed"], self.system["steps"])
        else:
            particle.drift(steps, d)


class ECDSep(_Separable):
    r"""Separable energy-conserving descent, turned a little at every step.

    The speed is at most 1 whatever the loss (s = 1), and the trajectory does not
    change when the loss is multiplied by a constant. Mixing comes from a random
    rotation of the momentum by an angle of about ν √n at each step.

    .. math:: p \leftarrow r p - \Delta t\,\eta\,\frac{\nabla F}{F - F_0}, \qquad
        \theta \leftarrow \theta + \frac{2 \Delta t\, p}{s + |p|^2}, \qquad
        p \leftarrow |p| \frac{p/|p| + \nu z}{\big|p/|p| + \nu z\big|}

    with :math:`r^2 = (e^E/V - s)/|p|^2`, :math:`V = (F - F_0)^\eta`.

    Args:
        params: Parameters or groups; all groups form one particle.
        lr: Time step Δt > 0.
        f_min: Assumed minimum F0 of the loss.
        extra_energy: Initial |p|² = δE >= 0; must be 0 or 1 (and is 1) when s != 1.
        eta: Concentration exponent η >= 1.
        nu: Rotation ν >= 0 per step; 0 draws nothing.
        s: Regularisation s >= 0; 0 leaves no state of rest.
        energy: Conserved energy e^(E/η) > 0 in units of the loss; by default it comes
            from the first loss and `extra_energy`. With s = 0, 1 keeps |p|² = 1/V.
        scaled: Divide lr by √η and ν by √n, so that good values hardly depend on η
            and on the size of the model.
        noise_damping: Exponent γ >= 0: ν is multiplied by (V (s + δE)/e^E)^γ, 1 at
            the start and 0 at the minimum.
        conserve_energy: Rescale the momentum every step (consEn).
        weight_decay: L2 factor w_d >= 0, part of the conserved energy.
        self_tuning: Lower f_min whenever the loss falls to it, so that F - F0 becomes
            four times as far above; the step that does so does not move (F0 tuning).
        energy_batches: Steps >= 1 whose mean F - F0 sets the energy.
        rule: "standard"; "absolute": Σ|p_i| in place of |p|², θ moves by the signs of
            p; "polyak": θ ← θ - 2 Δt (F - F0) ∇F/(η |∇F|²), the limit of large
            Δt at Δt = 1, without momentum.
        seed: Seed of the rotations.
        compat: Reproduce the released code rule for rule: the constructor's lr holds
            for all groups whatever a scheduler says; V = (F - F0)^η instead of
            F - F0 must exceed 1e-40, is what a shift is measured in (η an odd
            integer), and the kick knows nothing of the shift; "polyak" acts on every
            tensor by itself.

    Note:
        The first momentum follows the gradient without weight decay, as in the
        released code; at a zero gradient its direction is random (the code divides
        zero by zero). V = e^E/s exactly keeps the momentum.

    Reference:
        G. B. De Luca, A. Gatti, E. Silverstein, "Improving Energy Conserving Descent
        for Machine Learning: Theory and Practice", 2023, arXiv 2306.00352.
    """

    traits = replace(
        FAMILY,
        summary="separable particle of bounded speed, rotated at each step",
        paper="De Luca, Gatti, Silverstein, 2023, arXiv 2306.00352",
    )
    bounds = {**_BOUNDS, "s": "[0, inf)", "energy": "(0, inf)"}

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1e1)] = 4e-1,
        f_min: float = 0.0,
        extra_energy: Annotated[float, Uniform(0.0, 10.0)] = 0.0,
        eta: Annotated[float, Uniform(1.0, 5.0)] = 1.0,
        nu: Annotated[float, LogUniform(1e-7, 1e-1)] = 1e-5,
        s: float = 1.0,
        energy: float | None = None,
        scaled: bool = False,
        noise_damping: float = 0.0,
        conserve_energy: bool = True,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        self_tuning: bool = False,
        energy_batches: int = 1,
        rule: Rule = "standard",
        seed: int = 0,
        compat: bool = False,
    ):
        if s != 1 and extra_energy not in (0, 1):
            raise ValueError(
                f"extra_energy must be 0 or 1 when s != 1, got {extra_energy}: without "
                "s = 1 the particle starts with |p|² = 1"
            )
        if energy is not None and energy_batches != 1:
            raise ValueError(
                f"energy_batches must be 1 where energy is given, got {energy_batches}"
            )
        one_of(get_args(Rule), rule=rule)
        if compat and self_tuning and eta % 2 != 1:
            raise ValueError(
                f"eta must be an odd integer with self_tuning and compat, got {eta}"
            )
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "eta": eta,
            "nu": nu,
            "s": s,
            "energy": energy,
            "scaled": scaled,
            "noise_damping": noise_damping,
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "self_tuning": self_tuning,
            "energy_batches": energy_batches,
            "rule": rule,
            "seed": seed,
            "compat": compat,
        }
        super().__init__(params, defaults)

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the separable Hamiltonian of the 2-norm or of the 1-norm."""
        kind = Absolute if group["rule"] == "absolute" else Separable
        return kind(group["eta"], group["s"])

    def move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Rescale; p ← p - Δt η ∇F/V; θ ← θ + 2 Δt p/(s + |p|²); rotate."""
        head = particle.groups[0]
        if head["rule"] == "polyak":
            return V, self._polyak(particle, V, live)
        energy, r = self.rescale(particle, H, V, E, live)
        k = where(live, H.kick(self._kicked_by(V, head), E), 0.0)
        p2 = particle.kick(self._steps(particle), k, r)
        if head["rule"] == "absolute":
            return energy, self._signed_drift(particle, H, V, E, live)
        d = where(live, H.drift(V, E, p2), 0.0)
        self._drift(particle, V, E, d, live)
        return energy, d

    def _signed_drift(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> Number:
        """θ ← θ + Δt sign(p)/(s + A), A = Σ|p_i|; rotate p/A, then make it A again."""
        p = particle.fold()
        A = particle.own["p2"] = self._one_norm(p)
        d = where(live, H.drift(V, E, A), 0.0)
        steps = self._steps(particle)
        for step, (q, _, x) in zip(steps, particle.parts, strict=True):
            add_scaled(x, step * d, q.sign())
        if particle.groups[0]["nu"]:
            nu = where(live, self._damped_nu(particle, V, E), 0.0)
            add_scaled(p, nu * A, self.draw("normal", p))
            turned = self._one_norm(p)
            p.mul_(A / where(turned > 0, turned, 1.0))
        return d

    def _polyak(self, particle: Particle, V: Number, live: bool | Tensor) -> Number:
        """θ ← θ - 2 Δt V G/(η (|G|² + 1e-8)), G = ∇F + w_d θ."""
        groups, parts = particle.groups, particle.parts
        G = [
            g + group["weight_decay"] * x
            for group, (_, g, x) in zip(groups, parts, strict=True)
        ]
        squares = [particle.body.square(force) for force in G]
        if not groups[0]["compat"]:
            squares = [sum(squares)] * len(squares)
        V = where(live, V, 0.0)
        for step, force, square, (_, _, x) in zip(
            self._steps(particle), G, squares, parts, strict=True
        ):
            factor = -2 * step * V / (groups[0]["eta"] * (square + 1e-8))
            add_scaled(x, factor, force)
        return 0.0 * V

    def _layout(self) -> list[tuple[list[dict[str, Any]], list[Span]]]:
        head = self.param_groups[0]
        apart = head["rule"] == "polyak" and head["compat"]
        return self._by_tensor() if apart else super()._layout()

    def _one_norm(self, v: Tensor) -> Number:
        """Return Σ|v_i|, of every row where runs are rows."""
        total = v.abs().sum(-1, keepdim=bool(self.rows), dtype=torch.float64)
        return total.item() if self.host else total

    def _size(self, particle: Particle) -> Number:
        if particle.groups[0]["rule"] == "absolute":
            return particle.scale * self._one_norm(particle.q)
        return super()._size(particle)

    def _ratio(self, shell: Number, p2: Number) -> Number:
        if self.param_groups[0]["rule"] == "absolute":  # both are 1-norms
            return shell / p2
        return super()._ratio(shell, p2)

    def _launch(self, particle: Particle, p2: Number) -> None:
        super()._launch(particle, p2)
        if particle.groups[0]["rule"] == "absolute":
            p = particle.fold()
            size = self._one_norm(p)
            p.mul_(particle.own["p2"] / where(size > 0, size, 1.0))

    def _kicked_by(self, V: Number, group: dict[str, Any]) -> Number:
        """Return the V of the kick; the released code leaves the shift out."""
        shifted = group["compat"] and group["self_tuning"]
        return V + self.system["shift"] if shifted else V

    def _shift(self, V: Number, group: dict[str, Any]) -> Number:
        return 5 * V ** group["eta"] if group["compat"] else super()._shift(V, group)

    def _extra_energy(self, group: dict[str, Any]) -> float:
        return group["extra_energy"] if group["s"] == 1 else 1.0

    def _threshold(self, group: dict[str, Any]) -> float:
        # The released code tests V = Φ^η, which stops it at Φ = 1e-8 when η = 5.
        threshold = super()._threshold(group)
        return threshold ** (1 / group["eta"]) if group["compat"] else threshold

    def _lr(self, group: dict[str, Any]) -> float:
        return self.defaults["lr"] if group["compat"] else group["lr"]


class ECDSepLeapfrog(_Separable):
    r"""Separable energy-conserving descent by the leapfrog scheme.

    Kicks by half a step before and after the momentum meets the position: the
    energy's error falls as Δt² instead of Δt, for the same one gradient per step,
    and the rescale happens where it is measured.

    .. math:: p \leftarrow p - \tfrac{\Delta t}2 \eta \frac{\nabla F}{F - F_0},
        \quad p \leftarrow r p, \quad
        p \leftarrow p - \tfrac{\Delta t}2 \eta \frac{\nabla F}{F - F_0}, \quad
        \theta \leftarrow \theta + \frac{2 \Delta t\, p}{1 + |p|^2}

    with :math:`r^2 = (e^E/V - 1)/|p|^2`, then the rotation of `ECDSep`; the first
    step has only the second half kick and the drift.

    Args:
        params: Parameters or groups; all groups form one particle.
        lr: Time step Δt > 0.
        f_min: Assumed minimum F0 of the loss.
        extra_energy: Initial |p|² = δE >= 0.
        eta: Concentration exponent η >= 1.
        nu: Rotation ν >= 0 per step; 0 draws nothing.
        scaled: Divide lr by √η and ν by √n.
        noise_damping: Exponent γ >= 0: ν is multiplied by (V (1 + δE)/e^E)^γ.
        conserve_energy: Rescale the momentum every step (consEn).
        weight_decay: L2 factor w_d >= 0, part of the conserved energy.
        self_tuning: Lower f_min whenever the loss falls to it.
        energy_batches: Steps >= 1 whose mean F - F0 sets the energy.
        seed: Seed of the rotations.

    Reference:
        The note "MixingOptimization" of the authors of arXiv 2306.00352, 2023.
    """

    traits = replace(
        FAMILY,
        summary="ECDSep by leapfrog: second-order energy error",
        paper="De Luca, Gatti, Silverstein, note, 2023",
    )
    bounds = _BOUNDS

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1e1)] = 4e-1,
        f_min: float = 0.0,
        extra_energy: Annotated[float, Uniform(0.0, 10.0)] = 0.0,
        eta: Annotated[float, Uniform(1.0, 5.0)] = 1.0,
        nu: Annotated[float, LogUniform(1e-7, 1e-1)] = 1e-3,
        scaled: bool = False,
        noise_damping: Annotated[float, Uniform(0.0, 2.0)] = 1.0,
        conserve_energy: bool = True,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        self_tuning: bool = False,
        energy_batches: int = 1,
        seed: int = 0,
    ):
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "eta": eta,
            "nu": nu,
            "scaled": scaled,
            "noise_damping": noise_damping,
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "self_tuning": self_tuning,
            "energy_batches": energy_batches,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Half kick, rescale, half kick, drift, rotate."""
        steps, own = self._steps(particle), particle.own
        begun = own.get("begun", self._number(0.0))  # 0: p and θ are of one moment
        k = where(live, 0.5 * H.kick(V, E), 0.0)
        if not self.host or begun:
            particle.kick(steps, k * begun)
        energy, r = self.rescale(particle, H, V, E, live)
        p2 = particle.kick(steps, k, r)
        d = where(live, H.drift(V, E, p2), 0.0)
        self._drift(particle, V, E, d, live, begun)
        own["begun"] = where(live, 1.0, begun)
        return energy, d
