"""Born-Infeld descent."""

from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import one_of
from lightning_ecd.optimizers.base import Number, ParamsT
from lightning_ecd.optimizers.ecd import ECD, FAMILY
from lightning_ecd.optimizers.hamiltonian import BornInfeld, Hamiltonian
from lightning_ecd.optimizers.particle import Particle, Span
from lightning_ecd.optimizers.scalars import where
from lightning_ecd.ranges import LogUniform, Uniform

Bounce = Literal["cube", "isotropic"]

_BORN_INFELD = BornInfeld()
#: More steps than anybody takes: the papers write 1e20 and 1e25, which a counter on
#: an accelerator could not be compared with.
_NEVER = 2**62


class BBI(ECD):
    r"""Born-Infeld descent: a relativistic particle that bounces.

    The particle moves without friction at a speed of at most √V, so that it slows
    only where the loss comes near `f_min`. From time to time its momentum is turned
    at random, keeping the energy: after `patience` steps without a new minimum, and
    `fixed_bounces` times every `bounce_every` steps.

    .. math:: p \leftarrow r p - \tfrac{\Delta t}{2}\left(\tfrac VE + \tfrac EV\right)
        \nabla F, \qquad \theta \leftarrow \theta + \Delta t \tfrac VE p

    with :math:`r^2 = V((E/V)^2 - 1)/|p|^2` of the step's beginning.

    Args:
        params: Parameters or groups; all groups form one particle.
        lr: Time step Δt > 0.
        f_min: Assumed minimum of the loss, the paper's ΔV or v0.
        extra_energy: Initial kinetic energy δE >= 0; 0 starts at rest.
        bounce_every: Steps T0 >= 1 between fixed bounces.
        fixed_bounces: Number N_b >= 0 of fixed bounces.
        patience: Steps T1 >= 1 without a new minimum after which it bounces.
        conserve_energy: Rescale the momentum every step (consEn). Without it the
            explicit scheme drifts by O(1).
        weight_decay: L2 factor w_d >= 0, part of the conserved energy.
        self_tuning: Lower f_min whenever the loss falls to it, so that V becomes
            -4 V; the step that does so does not move (BBI_v0tuning).
        energy_batches: Steps >= 1 whose mean V sets the energy.
        bounce: Law of the new direction: "cube" (the paper's, uniform draws in a
            cube) or "isotropic" (uniform on the sphere).
        seed: Seed of the bounces.
        compat: Reproduce the released code rule for rule: first momentum normalised
            per tensor, each group a particle of its own, one fixed bounce when
            `fixed_bounces` is 0; weight decay twice in the force and not in E; no
            shift of f_min before the first move.

    Note:
        Departures from the released code unless `compat`: the first momentum is
        normalised over all tensors, groups form one particle, bounces are seeded.
        In both forms a zero gradient starts in a random direction (the code divides
        zero by zero) and V = E exactly keeps the momentum.

    Reference:
        G. B. De Luca, E. Silverstein, "Born-Infeld (BI) for AI: Energy-Conserving
        Descent (ECD) for Optimization", ICML 2022, arXiv 2201.11137.
    """

    traits = replace(
        FAMILY,
        summary="relativistic particle with random bounces",
        paper="De Luca, Silverstein, ICML 2022, arXiv 2201.11137",
    )
    bounds = {
        "lr": "(0, inf)",
        "f_min": "(-inf, inf)",
        "extra_energy": "[0, inf)",
        "bounce_every": "[1, inf)",
        "fixed_bounces": "[0, inf)",
        "patience": "[1, inf)",
        "weight_decay": "[0, inf)",
        "energy_batches": "[1, inf)",
    }
    decayed_start = True

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-4, 1e1)] = 1e-2,
        f_min: float = 0.0,
        extra_energy: Annotated[float, Uniform(0.0, 2.0)] = 0.0,
        bounce_every: int = 1000,
        fixed_bounces: int = 1,
        patience: int = 3000,
        conserve_energy: bool = True,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        self_tuning: bool = False,
        energy_batches: int = 1,
        bounce: Bounce = "cube",
        seed: int = 0,
        compat: bool = False,
    ):
        one_of(get_args(Bounce), bounce=bounce)
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "bounce_every": min(bounce_every, _NEVER),
            "fixed_bounces": fixed_bounces,
            "patience": min(patience, _NEVER),
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "self_tuning": self_tuning,
            "energy_batches": energy_batches,
            "bounce": bounce,
            "seed": seed,
            "compat": compat,
        }
        super().__init__(params, defaults)

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the Born-Infeld Hamiltonian."""
        return _BORN_INFELD

    def move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Rescale; p ← p - ½ Δt (V/E + E/V) ∇F; θ ← θ + Δt (V/E) p."""
        # the released code adds the decay to the gradient twice
        particle.decay_factor = 2.0 if particle.groups[0]["compat"] else 1.0
        energy, r = self.rescale(particle, H, V, E, live)
        d = where(live, H.drift(V, E, 0.0), 0.0)
        k = where(live, H.kick(V, E), 0.0)
        particle.kick(self._steps(particle), k, r, d=d)
        return energy, d

    def bounce(self, particle: Particle, live: bool | Tensor) -> bool | Tensor:
        """Turn the momentum at random where that is due; parameters and |p| stay."""
        group, system = particle.groups[0], self.system
        fixed = live & (system["since_fixed"] == group["bounce_every"])
        if not group["fixed_bounces"] and not group["compat"]:
            fixed = fixed & False  # the released code bounces once even so
        due = fixed | (live & (system["since_best"] == group["patience"]))
        if not self._any(due):
            return False
        self._turn(particle, due if self.rows else True)
        system["bounces"] = system["bounces"] + due * 1
        system["fixed"] = system["fixed"] + fixed * 1
        again = fixed & (system["fixed"] < group["fixed_bounces"])
        system["since_fixed"] = where(again, 0, system["since_fixed"] + fixed * 1)
        system["since_best"] = where(due, 0, system["since_best"])
        return due if self.rows else True

    def _any(self, due: bool | Tensor) -> bool:
        """Return whether to bounce: the one flag that an accelerator is asked for."""
        return bool(due.any() if isinstance(due, Tensor) else due)

    def _turn(self, particle: Particle, due: bool | Tensor) -> None:
        """Replace the momentum's direction by a random one where `due`."""
        q, p2 = particle.q, particle.own["p2"]
        if particle.groups[0]["bounce"] == "cube":
            direction = self.draw("uniform", q).sub_(0.5)
        else:
            direction = self.draw("normal", q)
        if isinstance(due, Tensor):
            direction = torch.where(due, direction, q)
        particle.launch(p2, direction)

    def _layout(self) -> list[tuple[list[dict[str, Any]], list[Span]]]:
        if not self.param_groups[0]["compat"]:
            return super()._layout()
        pairs = zip(self.param_groups, self.flat.spans, strict=True)
        return [([group], [span]) for group, span in pairs]

    def _launch(self, particle: Particle, p2: Number) -> None:
        super()._launch(particle, p2)
        if self.rows or not particle.groups[0]["compat"] or not p2 > 0:
            return
        # The released code gives every tensor the whole momentum.
        q, momentum = particle.q, self.vectors["momentum"]
        start = q.storage_offset()
        for view in self.flat.views(momentum):
            if start <= view.storage_offset() < start + q.numel() and view.any():
                view.div_(particle.body.square(view.reshape(-1)) ** 0.5)
        particle.launch(p2 * particle.body.square(q))

    def _first_potential(self, loss: Number) -> Number:
        head = self.param_groups[0]
        return (
            loss - head["f_min"] if head["compat"] else super()._first_potential(loss)
        )

    def _tune(self, V: Number, head: dict[str, Any]) -> None:
        # the released code forgets every shift until the first move
        if "energy" in self.system or not head["compat"]:
            super()._tune(V, head)
