r"""Energy-conserving descent: a frictionless particle on the loss surface.

========  ==================  ==========================================
symbol    variable            shape and meaning
========  ==================  ==========================================
θ         ``x``               (n,) parameters
∇F        ``g``               (n,) gradient
p, π, u   ``particle``        (n,) momentum
V         ``V``               loss + ½ w_d |θ|² - f_min - shift
E         ``E``               conserved energy, in units of the loss
r         ``r``               rescale that puts p back on the energy shell
Δt        ``steps``           time step, per group
========  ==================  ==========================================

Numbers are floats on the CPU, 0-d tensors on an accelerator, which is never waited
for, and columns (R, 1) where R runs are the rows of one parameter.
"""

import math
import warnings
from abc import abstractmethod
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_ecd.flat import FlatParameters
from lightning_ecd.kernels import Body, Eager
from lightning_ecd.optimizers.base import Descent, Evaluate, Number
from lightning_ecd.optimizers.hamiltonian import Hamiltonian
from lightning_ecd.optimizers.particle import Particle, Span
from lightning_ecd.optimizers.scalars import where
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.randomness import normals, uniforms

#: Steps without V > 0 after which the user is told that nothing moves.
_FROZEN = 100
#: What all members of the family need and stand.
FAMILY = Traits(
    family="energy-conserving",
    summary="",
    paper="",
    needs_loss=True,
    closure=True,
    draws_noise=True,
    scaler=False,
    rows=True,
    clipping="clipping changes the gradient but not the loss it belongs to: energy is "
    "no longer conserved; prefer a smaller lr",
)


class ECD(Descent):
    """The loop that the energy-conserving family shares.

    A step rescales the momentum to the energy shell, kicks it by the gradient, moves
    the parameters, and turns the momentum. Subclasses choose a Hamiltonian, the order
    of these moves, and how the momentum turns.

    Where V = loss + L2 - f_min is not positive the particle rests: nothing changes
    but the count ``info["skipped"]``; with `self_tuning` f_min is lowered.

    `info` holds: ``energy`` and ``violation`` (relative, before the rescale), ``V``,
    ``momentum`` |p|, ``speed`` |dθ/dt|, ``shift`` of f_min, and the counts
    ``skipped`` (V <= 0), ``unscaled`` (V > E: no momentum is on the shell),
    ``bounces`` and ``shifts``; where runs are rows it stays empty.
    """

    #: The first momentum follows g + w_d θ instead of g.
    decayed_start: ClassVar[bool] = False
    #: The paper's constants: no rescale below eps1, no motion at V <= eps2.
    eps1: ClassVar[float] = 1e-10
    eps2: ClassVar[float] = 1e-40

    _particles: list[Particle] | None = None

    @abstractmethod
    def hamiltonian(self, group: dict[str, Any]) -> Hamiltonian:
        """Return the Hamiltonian that a group's hyper-parameters describe."""

    @abstractmethod
    def move(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Rescale, kick, drift and turn a particle.

        Args:
            particle: What moves.
            H: Its Hamiltonian.
            V: Its potential, positive.
            E: Its conserved energy.
            live: Which runs move; True on the host.

        Returns:
            Energy before the rescale and drift d, for the speed d |p|.
        """

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Move the particle by one time step, or turn it."""
        self.kept("momentum")
        if "energy" not in self.system and not self._start(loss):
            self._rest()
            return
        for particle in self.particles:
            self._advance(loss, particle)

    @property
    def particles(self) -> list[Particle]:
        """One particle, whatever the groups."""
        if self._particles is None:
            vectors = self.x, self.g, self.vectors["momentum"]
            kind = self._body(), self.host, self.rows
            self._particles = [
                Particle(groups, spans, *vectors, *kind)
                for groups, spans in self._layout()
            ]
        return self._particles

    def _body(self) -> Body:
        alike = self.vectors["momentum"].dtype == self.x.dtype
        return self.body_of(self.x) if alike and not self.rows else Eager()

    def _layout(self) -> list[tuple[list[dict[str, Any]], list[Span]]]:
        """Return groups and spans of every particle's parts."""
        return [(self.param_groups, self.flat.spans)]

    def _by_tensor(self) -> list[tuple[list[dict[str, Any]], list[Span]]]:
        """Return the layout of one particle whose parts are the tensors."""
        groups, spans = [], []
        ends = accumulate(self.flat.sizes)
        for size, end in zip(self.flat.sizes, ends, strict=True):
            for group, (start, stop) in zip(
                self.param_groups, self.flat.spans, strict=True
            ):
                if size and start < end <= stop:
                    groups.append(group)
                    spans.append((end - size, end))
        return [(groups, spans)]

    def _rebound(self, former: FlatParameters | None) -> None:
        self._particles = None
        # A checkpoint of a CPU run holds q and its scale, one of an accelerator p.
        # Frozen parameters took their part of |p|² with them.
        for particle in self.particles if "momentum" in self.vectors else ():
            if "p2" not in (own := particle.own):
                continue
            if self.host:
                own.setdefault("scale", 1.0)
            else:
                particle.q.mul_(own.pop("scale", 1.0))
            if former is not None:
                own["p2"] = self._size(particle)

    def _size(self, particle: Particle) -> Number:
        """Return |p|² afresh."""
        return particle.scale**2 * particle.body.square(particle.q)

    def _start(self, loss: Number) -> bool:
        """Set energy and momenta from the first loss with V > 0."""
        head = self.param_groups[0]
        V = self._first_potential(loss)
        live = V > self._threshold(head)
        if not self.rows and not live:  # before the first motion a device may be asked
            self._tune(V, head)
            return False
        V = where(live, V, 1.0)
        H = self.hamiltonian(head)
        E = head.get("energy")
        E = H.initial(V, self._extra_energy(head)) if E is None else 0 * V + E
        self.system.update(
            energy=E,
            start=V,
            best=self._number(math.inf),
            shift=self.system.get("shift", self._number(0.0)),
            shifts=self.system.get("shifts", self._number(0)),
            averaged=self._number(0),
            since_best=self._number(0),
            since_fixed=self._number(0),
            fixed=self._number(0),
            bounces=self._number(0),
            skipped=self.system.get("skipped", self._number(0)),
            unscaled=self._number(0),
            resting=self._number(0),
        )
        for particle in self.particles:
            self._launch(particle, H.kinetic(V, E))
        return True

    def _launch(self, particle: Particle, p2: Number) -> None:
        """Give a particle its first momentum: downhill, of squared size `p2`."""
        q = particle.q
        parts = zip(particle.groups, particle.parts, strict=True)
        for group, (momentum, g, x) in parts:
            momentum.sub_(g)
            if self.decayed_start and group["weight_decay"]:
                momentum.sub_(x, alpha=group["weight_decay"])
        p2 = where(p2 > 0, p2, 0 * p2)
        if not particle.n:
            particle.launch(p2)
            return
        largest = q.abs().amax(-1, keepdim=True)
        level = largest == 0
        if level.any():  # a critical point has no downhill: any direction will do
            q.copy_(torch.where(level, self.draw("normal", q), q))
            largest = q.abs().amax(-1, keepdim=True)
        q.div_(largest)  # the square of 1e30 or 1e-30 leaves float32
        particle.launch(p2)

    def _advance(self, loss: Number, particle: Particle) -> None:
        head, system, own = particle.groups[0], self.system, particle.own
        V = self._potential(loss, particle)
        live = V > self._threshold(head)
        self._tune(V, head)
        if self.host and not live:
            self._rest()
            return
        V = where(live, V, 1.0)
        H = self.hamiltonian(head)
        if "p2" not in own:  # a group added in mid-run that is a particle of its own
            self._launch(particle, H.kinetic(system["start"], system["energy"]))
        if head.get("energy_batches", 1) > 1:
            self._average_energy(V, H, head, live)
        E = system["energy"]

        if not self.rows:
            self._count_rests(live)
        bounced = self.bounce(particle, live)
        if bounced is True:
            self._report(V, E, H.energy(V, own["p2"]), own["p2"], 0.0)
            return
        if bounced is not False:  # some of many runs
            live = live & ~bounced
        energy, d = self.move(particle, H, V, E, live)
        self._count_moves(V, live)
        self._report(V, E, energy, own["p2"], d)

    def rescale(
        self,
        particle: Particle,
        H: Hamiltonian,
        V: Number,
        E: Number,
        live: bool | Tensor,
    ) -> tuple[Number, Number]:
        """Return the energy of a particle and the factor that makes it E."""
        p2 = particle.own["p2"]
        energy = V if self.rows else H.energy(V, p2)  # nobody reads that of rows
        if not particle.groups[0]["conserve_energy"]:
            return energy, 1.0
        # V can exceed E on a mini-batch: the particle then keeps its momentum.
        shell = H.kinetic(V, E)
        if not self.rows:
            system = self.system
            system["unscaled"] = system["unscaled"] + (live & (shell < 0))
        usable = live & (shell > 0) & (p2 > 0) & (abs(shell - p2) >= self.eps1)
        return energy, self._ratio(where(usable, shell, 1.0), where(usable, p2, 1.0))

    def _ratio(self, shell: Number, p2: Number) -> Number:
        """Return the factor of the momentum that makes its p² `shell`."""
        return (shell / p2) ** 0.5

    def bounce(self, particle: Particle, live: bool | Tensor) -> bool | Tensor:
        """Turn the momentum in place of a step; return where that happened."""
        return False

    def _count_rests(self, live: bool | Tensor) -> None:
        """Count where the particle does not move because V <= 0."""
        if live is True:
            self.system["resting"] = 0
            return
        system, resting = self.system, 1 - live * 1
        system["skipped"] = system["skipped"] + resting
        system["resting"] = (system["resting"] + 1) * resting

    def _count_moves(self, V: Number, live: bool | Tensor) -> None:
        """Advance the counters by a step that moved the particle where `live`."""
        system, moved = self.system, live * 1
        better = live & (V < system["best"])
        system["since_best"] = where(better, 0, system["since_best"] + moved)
        system["best"] = where(better, V, system["best"])
        system["since_fixed"] = system["since_fixed"] + moved

    def _average_energy(
        self, V: Number, H: Hamiltonian, head: dict[str, Any], live: bool | Tensor
    ) -> None:
        """Let E come from the mean V of the first `energy_batches` steps."""
        system = self.system
        more = live & (system["averaged"] < head["energy_batches"])
        seen = system["averaged"] + more * 1
        mean = system["start"] + (V - system["start"]) / where(more, seen, 1)
        system["averaged"] = seen
        system["start"] = where(more, mean, system["start"])
        E = H.initial(mean, self._extra_energy(head))
        system["energy"] = where(more, E, system["energy"])

    def draw(self, kind: Literal["normal", "uniform"], like: Tensor) -> Tensor:
        """Return random numbers for this step, shaped as `like`.

        They are a function of (seed, step, offset in the vector); assign another
        function to inject recorded draws.
        """
        law = normals if kind == "normal" else uniforms
        seed = self.param_groups[0]["seed"]
        return law(like, seed, self.system["steps"], int(like.storage_offset()))

    def _first_potential(self, loss: Number) -> Number:
        """Return the V that energy and first momentum come from."""
        return self._potential(loss, self.particles[0])

    def _potential(self, loss: Number, particle: Particle) -> Number:
        """Return V = loss + ½ w_d |θ|² - f_min - shift."""
        head = particle.groups[0]
        V = loss - head["f_min"] + particle.decay()
        return V - self.system.get("shift", 0.0) if head["self_tuning"] else V

    def _tune(self, V: Number, head: dict[str, Any]) -> None:
        """Lower f_min where the loss has fallen to it: V becomes -4 V > 0."""
        if not head["self_tuning"]:
            return
        system, below = self.system, V <= 0
        shift = system.get("shift", self._number(0.0))
        system["shift"] = where(below, shift + self._shift(V, head), shift)
        system["shifts"] = system.get("shifts", self._number(0)) + below * 1

    def _shift(self, V: Number, head: dict[str, Any]) -> Number:
        """Return by how much f_min changes at a V that is not positive."""
        return 5 * V

    def _threshold(self, group: dict[str, Any]) -> float:
        """Return the V at or below which the particle rests."""
        return 0.0 if group["self_tuning"] else self.eps2

    def _steps(self, particle: Particle) -> list[Number]:
        """Return Δt of every part of a particle, over √η in the scaled interface."""
        head = particle.groups[0]
        root = head["eta"] ** 0.5 if head.get("scaled") else 1.0
        return [self._lr(group) / root for group in particle.groups]

    def _lr(self, group: dict[str, Any]) -> float:
        """Return the lr of a group; the released codes know the constructor's only."""
        return group["lr"]

    def _nu(self, particle: Particle) -> float:
        """Return ν, over √n in the scaled interface."""
        head = particle.groups[0]
        return head["nu"] / particle.n**0.5 if head["scaled"] else head["nu"]

    def _extra_energy(self, group: dict[str, Any]) -> float:
        return group["extra_energy"]

    def _number(self, value: float) -> Number:
        """Return a count or number as this device and number of runs keep it."""
        if self.host:
            return value
        dtype = torch.float64 if isinstance(value, float) else torch.int64
        shape = (self.rows, 1) if self.rows else ()
        return torch.full(shape, value, dtype=dtype, device=self.x.device)

    def _rest(self) -> None:
        """Count a step on which V <= 0 forbids any motion."""
        system = self.system
        system["skipped"] = system.get("skipped", 0) + 1
        system["resting"] = system.get("resting", 0) + 1
        self.info = {**self.info, "skipped": system["skipped"]}
        if system["resting"] == _FROZEN:
            head = self.param_groups[0]
            floor = head["f_min"] + system.get("shift", 0.0)
            warnings.warn(
                f"{type(self).__name__} has rested for {_FROZEN} steps: the loss does "
                f"not exceed f_min = {floor}; lower f_min, set self_tuning, or stop "
                "here",
                stacklevel=2,
            )

    def _report(
        self, V: Number, E: Number, energy: Number, p2: Number, d: Number
    ) -> None:
        if self.rows:
            return
        system, momentum = self.system, p2**0.5
        self.info = {
            "energy": energy,
            "violation": energy / E - 1,
            "V": V,
            "momentum": momentum,
            "speed": d * momentum,
            "shift": system["shift"],
            "skipped": system["skipped"],
            "unscaled": system["unscaled"],
            "bounces": system["bounces"],
            "shifts": system["shifts"],
        }
