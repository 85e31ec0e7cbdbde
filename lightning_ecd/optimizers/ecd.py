r"""Energy-conserving descent: a frictionless particle on the loss surface.

========  ==================  ==========================================
symbol    variable            shape and meaning
========  ==================  ==========================================
θ         ``x``               (n,) parameters
∇F        ``g``               (n,) gradient
p, π      ``scale * q``       (n,) momentum; its scale is a float64 number
V         ``V``               loss + ½ w_d |θ|² - f_min
E         ``E``               conserved energy, in units of the loss
r         ``r``               rescale that puts p back on the energy shell
Δt        ``lr``              time step, per group
========  ==================  ==========================================

Carrying the momentum's scale as a number saves a pass over memory per step and lets
float32 momenta reach any size.
"""

import math
import warnings
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_ecd.flat import FlatParameters, square_norm
from lightning_ecd.optimizers.base import (
    Descent,
    Evaluate,
    Number,
    ParamsT,
    add_scaled,
    where,
)
from lightning_ecd.optimizers.hamiltonian import BornInfeld, Hamiltonian, Separable
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.randomness import normals, uniforms
from lightning_ecd.ranges import LogUniform, Uniform

#: A squared norm of q outside these bounds is folded into the scale.
_SMALL, _LARGE = 2.0**-60, 2.0**60
#: More steps than anybody takes: the papers write 1e20 and 1e25, which a counter on
#: an accelerator could not be compared with.
_NEVER = 2**62
#: Steps without V > 0 after which the user is told that nothing moves.
_FROZEN = 100
_CLIPPING = (
    "clipping changes the gradient but not the loss it belongs to: energy is no "
    "longer conserved; prefer a smaller lr"
)


class ECD(Descent):
    """The loop that the energy-conserving family shares.

    A step rescales the momentum to the energy shell, kicks it by the gradient, moves
    the parameters, and turns the momentum where the subclass says so. Subclasses
    choose a Hamiltonian and how the momentum turns.

    Where V = loss + L2 - f_min is not positive the particle rests: nothing changes
    but the count ``info["skipped"]``.

    `info` holds: ``energy`` and ``violation`` (relative, before the rescale), ``V``,
    ``momentum`` |p|, ``speed`` |dθ/dt|, and the counts ``skipped`` (V <= 0),
    ``unscaled`` (V > E: no momentum is on the shell) and ``bounces``.
    """

    #: The first momentum follows g + w_d θ instead of g.
    decayed_start: ClassVar[bool]
    #: The paper's constants: no rescale below eps1, no motion at V <= eps2.
    eps1: ClassVar[float] = 1e-10
    eps2: ClassVar[float] = 1e-40

    @abstractmethod
    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the Hamiltonian that a group's hyper-parameters describe."""

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Move the particle by one time step, or turn it."""
        if "energy" not in self.system and not self._start(loss):
            self._rest()
            return
        for groups, spans in self._particles():
            self._advance(loss, groups, spans)

    def _particles(self) -> list[tuple[list[dict[str, Any]], list[tuple[int, int]]]]:
        """Return groups and spans of every particle: one, whatever the groups."""
        return [(self.param_groups, self.flat.spans)]

    def _rebound(self, former: FlatParameters | None) -> None:
        # A checkpoint of a CPU run holds q and its scale, one of an accelerator p.
        # Frozen parameters took their part of |p|² with them.
        for groups, spans in self._particles() if "momentum" in self.vectors else ():
            own = groups[0].setdefault("system", {})
            if "p2" not in own:
                continue
            q = _span(self.vectors["momentum"], spans)
            if self.flat.host:
                scale = own.setdefault("scale", 1.0)
            else:
                q.mul_(own.pop("scale", 1.0))
                scale = 1.0
            if former is not None:
                own["p2"] = scale * scale * square_norm(q)

    def _start(self, loss: Number) -> bool:
        """Set energy and momenta from the first loss with V > 0."""
        head = self.param_groups[0]
        V = self._potential(loss, self.param_groups, self.flat.spans)
        # before the first motion a device may be asked
        if not V > self._threshold(head):
            return False
        H = self.hamiltonian(head)
        E = H.initial(V, self._extra_energy(head))
        self.vectors["momentum"] = self.new_vector()
        self.system.update(
            start=V,
            energy=E,
            best=self._number(math.inf),
            since_best=self._number(0),
            since_fixed=self._number(0),
            fixed=self._number(0),
            bounces=self._number(0),
            skipped=self.system.get("skipped", self._number(0)),
            unscaled=self._number(0),
            resting=self._number(0),
        )
        for groups, spans in self._particles():
            self._launch(H.kinetic(V, E), groups, spans)
        return True

    def _launch(
        self,
        p2: Number,
        groups: list[dict[str, Any]],
        spans: list[tuple[int, int]],
    ) -> None:
        """Give a particle its first momentum: downhill, of squared size `p2`."""
        q = self.vectors["momentum"]
        for group, (start, stop) in zip(groups, spans, strict=True):
            q[start:stop].sub_(self.g[start:stop])
            if self.decayed_start and group["weight_decay"]:
                q[start:stop].sub_(self.x[start:stop], alpha=group["weight_decay"])
        q = _span(q, spans)
        if q.any():
            q.div_(q.abs().max())  # the square of 1e30 or 1e-30 leaves float32
        else:  # a critical point has no downhill: any direction will do
            q.copy_(self.draw("normal", q))
        square = square_norm(q)
        own = groups[0].setdefault("system", {})
        own["p2"] = p2
        own["scale"] = (p2 / square) ** 0.5 if square > 0 else 1.0
        if p2 == 0:
            q.zero_()
            own["scale"] = 1.0
        if not self.flat.host:
            q.mul_(own.pop("scale"))

    def _advance(
        self,
        loss: Number,
        groups: list[dict[str, Any]],
        spans: list[tuple[int, int]],
    ) -> None:
        head, shared = groups[0], self.system
        own = head.setdefault("system", {})
        H, host = self.hamiltonian(head), self.flat.host
        V = self._potential(loss, groups, spans)
        live = V > self._threshold(head)
        if host and not live:
            self._rest()
            return
        if not host:
            V = where(live, V, 1.0)
        E = shared["energy"]
        if "p2" not in own:  # a group added in mid-run that is a particle of its own
            self._launch(H.kinetic(shared["start"], E), groups, spans)
        p2 = own["p2"]
        energy = H.energy(V, p2)

        r: Number = 1.0
        if head["conserve_energy"]:
            # V can exceed E on a mini-batch: the particle then keeps its momentum.
            shell = H.kinetic(V, E)
            usable = (shell > 0) & (p2 > 0) & (abs(shell - p2) >= self.eps1)
            r = (where(usable, shell, 1.0) / where(usable, p2, 1.0)) ** 0.5
            shared["unscaled"] = shared["unscaled"] + (live & (shell < 0))

        p = self.vectors["momentum"]
        q = _span(p, spans)
        if self.turns(head) and self._bounce_due(head, live):
            self._bounce(head, own, q)
            self._report(V, E, energy, p2, 0.0)
            return

        k = H.kick(V, E)
        scale: Number = 1.0
        if host:
            scale = own["scale"] * r
        else:
            k = where(live, k, 0.0)
            if isinstance(r, Tensor):
                q.mul_(where(live, r, 1.0))
        x, g = self.x, self.g
        wide = host and k > _LARGE * scale  # a factor that float32 may not hold
        kicked = p.double() if wide else p
        for group, span in zip(groups, spans, strict=True):
            step = self._lr(group) * k / scale
            part = _span(kicked, [span])
            add_scaled(part, -step, _span(g, [span]))
            if group["weight_decay"]:
                add_scaled(part, -step * group["weight_decay"], _span(x, [span]))
        if wide:
            size = square_norm(_span(kicked, spans)) ** 0.5 or 1.0
            q.copy_(_span(kicked, spans).div(size))
            scale *= size
        square = square_norm(q)
        p2 = scale * scale * square
        d = H.drift(V, E, p2)
        if not host:
            d = where(live, d, 0.0)
        for group, span in zip(groups, spans, strict=True):
            step = self._lr(group) * d * scale
            add_scaled(_span(x, [span]), step, _span(p, [span]))

        if nu := head.get("nu"):
            turn = nu * square**0.5
            if not host:
                turn = where(live, turn, 0.0)
            add_scaled(q, turn, self.draw("normal", q))
            square = square_norm(q)
            back = (p2 / where(square > 0, square, 1.0)) ** 0.5
            if host:
                scale = back if square > 0 else scale
            else:
                q.mul_(back)
        if host:
            if not _SMALL < square < _LARGE and 0 < square < math.inf:
                q.mul_(square**-0.5)
                scale *= square**0.5
            own["scale"] = scale
        own["p2"] = p2
        self._count(V, live)
        self._report(V, E, energy, p2, d)

    def _count(self, V: Number, live: bool | Tensor) -> None:
        """Advance the counters by a step that moved the particle where `live`."""
        system = self.system
        moved = live * 1
        better = live & (V < system["best"])
        system["since_best"] = where(better, 0, system["since_best"] + moved)
        system["best"] = where(better, V, system["best"])
        system["since_fixed"] = system["since_fixed"] + moved
        system["skipped"] = system["skipped"] + (1 - moved)
        system["resting"] = (system["resting"] + 1) * (1 - moved)

    def turns(self, group: dict[str, Any]) -> bool:
        """Return whether the momentum ever bounces."""
        return False

    def _bounce_due(self, group: dict[str, Any], live: bool | Tensor) -> bool:
        """Return whether to bounce: the one flag that an accelerator is asked for."""
        system = self.system
        fixed = system["since_fixed"] == group["bounce_every"]
        stuck = system["since_best"] == group["patience"]
        return bool((fixed | stuck) & live)

    def _bounce(self, group: dict[str, Any], own: dict[str, Any], q: Tensor) -> None:
        """Turn the momentum at random; parameters and |p| stay."""
        if group["bounce"] == "cube":
            q.copy_(self.draw("uniform", q).sub_(0.5))
        else:
            q.copy_(self.draw("normal", q))
        square = square_norm(q)
        scale = (own["p2"] / where(square > 0, square, 1.0)) ** 0.5
        if self.flat.host:
            own["scale"] = scale
            if scale == 0:
                q.zero_()
                own["scale"] = 1.0
        else:
            q.mul_(scale)
        system = self.system
        system["bounces"] = system["bounces"] + 1
        fixed = system["since_fixed"] == group["bounce_every"]
        system["fixed"] = system["fixed"] + fixed * 1
        again = fixed & (system["fixed"] < group["fixed_bounces"])
        system["since_fixed"] = where(again, 0, system["since_fixed"] + fixed * 1)
        system["since_best"] = system["since_best"] * 0

    def draw(self, kind: Literal["normal", "uniform"], like: Tensor) -> Tensor:
        """Return random numbers for this step, shaped as `like`.

        They are a function of (seed, step, offset in the vector); assign another
        function to inject recorded draws.
        """
        law = normals if kind == "normal" else uniforms
        seed = self.param_groups[0]["seed"]
        return law(like, seed, self.system["steps"], int(like.storage_offset()))

    def _potential(
        self,
        loss: Number,
        groups: list[dict[str, Any]],
        spans: list[tuple[int, int]],
    ) -> Number:
        """Return V = loss + ½ w_d |θ|² - f_min."""
        V = loss - groups[0]["f_min"]
        for group, (start, stop) in zip(groups, spans, strict=True):
            if group["weight_decay"]:
                V = V + 0.5 * group["weight_decay"] * square_norm(self.x[start:stop])
        return V

    def _threshold(self, group: dict[str, Any]) -> float:
        """Return the V at or below which the particle rests."""
        return self.eps2

    def _lr(self, group: dict[str, Any]) -> float:
        return group["lr"]

    def _extra_energy(self, group: dict[str, Any]) -> float:
        return group["extra_energy"]

    def _number(self, value: float) -> Number:
        """Return a count or number as this device keeps it."""
        if self.flat.host:
            return value
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        return torch.tensor(value, dtype=dtype, device=self.x.device)

    def _rest(self) -> None:
        """Count a step on which V <= 0 forbids any motion."""
        system = self.system
        system["skipped"] = system.get("skipped", 0) + 1
        system["resting"] = system.get("resting", 0) + 1
        self.info = {**self.info, "skipped": system["skipped"]}
        if system["resting"] == _FROZEN:
            warnings.warn(
                f"{type(self).__name__} has rested for {_FROZEN} steps: the loss does "
                f"not exceed f_min = {self.param_groups[0]['f_min']}; lower f_min, or "
                "stop here",
                stacklevel=2,
            )

    def _report(
        self, V: Number, E: Number, energy: Number, p2: Number, d: Number
    ) -> None:
        system = self.system
        momentum = p2**0.5
        self.info = {
            "energy": energy,
            "violation": energy / E - 1,
            "V": V,
            "momentum": momentum,
            "speed": d * momentum,
            "skipped": system["skipped"],
            "unscaled": system["unscaled"],
            "bounces": system["bounces"],
        }


_BORN_INFELD = BornInfeld()


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
        bounce: Law of the new direction: "cube" (the paper's, uniform draws in a
            cube) or "isotropic" (uniform on the sphere).
        seed: Seed of the bounces.
        compat: Reproduce the released code rule for rule: first momentum normalised
            per tensor, each group a particle of its own, one fixed bounce when
            `fixed_bounces` is 0.

    Note:
        Departures from the released code unless `compat`: the first momentum is
        normalised over all tensors, groups form one particle, bounces are seeded.
        In both forms a zero gradient starts in a random direction (the code divides
        zero by zero) and V = E exactly keeps the momentum.

    Reference:
        G. B. De Luca, E. Silverstein, "Born-Infeld (BI) for AI: Energy-Conserving
        Descent (ECD) for Optimization", ICML 2022, arXiv 2201.11137.
    """

    traits = Traits(
        family="energy-conserving",
        summary="relativistic particle with random bounces",
        paper="De Luca, Silverstein, ICML 2022, arXiv 2201.11137",
        needs_loss=True,
        closure=True,
        draws_noise=True,
        scaler=False,
        clipping=_CLIPPING,
    )
    bounds = {
        "lr": "(0, inf)",
        "f_min": "(-inf, inf)",
        "extra_energy": "[0, inf)",
        "bounce_every": "[1, inf)",
        "fixed_bounces": "[0, inf)",
        "patience": "[1, inf)",
        "weight_decay": "[0, inf)",
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
        bounce: Literal["cube", "isotropic"] = "cube",
        seed: int = 0,
        compat: bool = False,
    ):
        if bounce not in ("cube", "isotropic"):
            raise ValueError(f"bounce must be 'cube' or 'isotropic', got {bounce!r}")
        if compat and weight_decay:
            raise ValueError(
                f"weight_decay must be 0 with compat, got {weight_decay}: the released "
                "rule has none"
            )
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "bounce_every": min(bounce_every, _NEVER),
            "fixed_bounces": fixed_bounces,
            "patience": min(patience, _NEVER),
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "bounce": bounce,
            "seed": seed,
            "compat": compat,
        }
        super().__init__(params, defaults)

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the Born-Infeld Hamiltonian."""
        return _BORN_INFELD

    def turns(self, group: dict[str, Any]) -> bool:
        """BBI bounces."""
        return True

    def _bounce_due(self, group: dict[str, Any], live: bool | Tensor) -> bool:
        if not group["fixed_bounces"] and not group["compat"]:
            # Without fixed bounces only patience counts; the released code bounces
            # once even so.
            stuck = self.system["since_best"] == group["patience"]
            return bool(stuck & live)
        return super()._bounce_due(group, live)

    def _particles(self) -> list[tuple[list[dict[str, Any]], list[tuple[int, int]]]]:
        if not self.param_groups[0]["compat"]:
            return super()._particles()
        pairs = zip(self.param_groups, self.flat.spans, strict=True)
        return [([group], [span]) for group, span in pairs]

    def _launch(
        self,
        p2: Number,
        groups: list[dict[str, Any]],
        spans: list[tuple[int, int]],
    ) -> None:
        super()._launch(p2, groups, spans)
        if groups[0]["compat"] and p2 > 0:
            # The released code gives every tensor the whole momentum.
            own = groups[0]["system"]
            start, stop = spans[0]
            q = self.vectors["momentum"][start:stop]
            for view in self.flat.views(self.vectors["momentum"]):
                if start <= view.storage_offset() < stop and view.any():
                    view.div_(square_norm(view.reshape(-1)) ** 0.5)
            own["p2"] = p2 * square_norm(q)
            if self.flat.host:
                own["scale"] = p2**0.5
            else:
                q.mul_(p2**0.5)


class ECDSep(ECD):
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
        conserve_energy: Rescale the momentum every step (consEn).
        weight_decay: L2 factor w_d >= 0, part of the conserved energy.
        seed: Seed of the rotations.
        compat: Reproduce the released code rule for rule: the constructor's lr holds
            for all groups whatever a scheduler says; V = (F - F0)^η instead of
            F - F0 must exceed 1e-40.

    Note:
        The first momentum follows the gradient without weight decay, as in the
        released code; at a zero gradient its direction is random (the code divides
        zero by zero). V = e^E/s exactly keeps the momentum.

    Reference:
        G. B. De Luca, A. Gatti, E. Silverstein, "Improving Energy Conserving Descent
        for Machine Learning: Theory and Practice", 2023, arXiv 2306.00352.
    """

    traits = Traits(
        family="energy-conserving",
        summary="separable particle of bounded speed, rotated at each step",
        paper="De Luca, Gatti, Silverstein, 2023, arXiv 2306.00352",
        needs_loss=True,
        closure=True,
        draws_noise=True,
        scaler=False,
        clipping=_CLIPPING,
    )
    bounds = {
        "lr": "(0, inf)",
        "f_min": "(-inf, inf)",
        "extra_energy": "[0, inf)",
        "eta": "[1, inf)",
        "nu": "[0, inf)",
        "s": "[0, inf)",
        "weight_decay": "[0, inf)",
    }
    decayed_start = False

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1e1)] = 4e-1,
        f_min: float = 0.0,
        extra_energy: Annotated[float, Uniform(0.0, 10.0)] = 0.0,
        eta: Annotated[float, Uniform(1.0, 5.0)] = 1.0,
        nu: Annotated[float, LogUniform(1e-7, 1e-1)] = 1e-5,
        s: float = 1.0,
        conserve_energy: bool = True,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        seed: int = 0,
        compat: bool = False,
    ):
        if s != 1 and extra_energy not in (0, 1):
            raise ValueError(
                f"extra_energy must be 1 when s != 1, got {extra_energy}: without "
                "s = 1 the particle starts with |p|² = 1"
            )
        defaults = {
            "lr": lr,
            "f_min": f_min,
            "extra_energy": extra_energy,
            "eta": eta,
            "nu": nu,
            "s": s,
            "conserve_energy": conserve_energy,
            "weight_decay": weight_decay,
            "seed": seed,
            "compat": compat,
        }
        super().__init__(params, defaults)

    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the separable Hamiltonian."""
        return Separable(group["eta"], group["s"])

    def _extra_energy(self, group: dict[str, Any]) -> float:
        return group["extra_energy"] if group["s"] == 1 else 1.0

    def _threshold(self, group: dict[str, Any]) -> float:
        # The released code tests V = Φ^η, which stops it at Φ = 1e-8 when η = 5.
        return self.eps2 ** (1 / group["eta"]) if group["compat"] else self.eps2

    def _lr(self, group: dict[str, Any]) -> float:
        return self.defaults["lr"] if group["compat"] else group["lr"]


def _span(vector: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Return the part of a vector that `spans` cover; the whole without slicing."""
    start, stop = spans[0][0], spans[-1][1]
    if start == 0 and stop == vector.numel():
        return vector
    return vector[start:stop]
