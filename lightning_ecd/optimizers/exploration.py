r"""The local-entropy engine: explore around the parameters, then follow the mean.

========  ======================  ==============================================
symbol    variable                shape and meaning
========  ======================  ==============================================
x         ``c``                   (n,) parameters, the center while exploring
x'        ``x``                   (n,) exploring point, near the center
∇f        ``g``                   (n,) gradient at x'
μ         ``mean``                (n,) running mean of x'
u         ``inner_momentum``      (n,) momentum of x'
v         ``momentum``            (n,) momentum of x
γ         ``gamma``               scope: stiffness of the spring between x' and x
η, η'     ``lr``, ``inner_lr``    step sizes of x and of x'
========  ======================  ==============================================

A step is atomic: it evaluates the gradient at L exploring points, each on a mini-batch
of its own, and leaves the parameters at x.
"""

import math
import warnings
from abc import abstractmethod
from typing import Any

from torch import Tensor

from lightning_ecd.flat import FlatParameters, dot, number, square_norm
from lightning_ecd.kernels import Eager, Exploration
from lightning_ecd.optimizers.base import Descent, Evaluate, Number
from lightning_ecd.optimizers.traits import Traits
from lightning_ecd.randomness import mixed

#: No exponent of e beyond: the scope would not be a number.
_LARGEST = 700.0
#: The largest η/(1 - m) at which outer moves are stable, by experiment.
_REACH = 2.0
#: Separates the noise of x from that of the exploring point.
_OUTER = 0x0EA7

FAMILY = Traits(
    family="local entropy",
    summary="",
    paper="",
    closure=True,
    evaluations="inner_steps + (inner_steps == 0 or not skip_first_eval)",
    minibatches="inner_steps + (inner_steps == 0 or not skip_first_eval)",
    state="",
    draws_noise=True,
    accumulation=False,
    scaler=False,
)


def growth(schedule: str, scoping: float, t: int) -> float:
    """Return γ/γ0 of a step.

    Args:
        schedule: "constant" 1, "exponential" (1 + γ1)^t, "linear" 1 + γ1 t,
            "quadratic" 1 + γ1 t², "bounded" 1 - exp(-γ1 t).
        scoping: γ1 >= 0.
        t: Number of the step.
    """
    match schedule:
        case "constant":
            return 1.0
        case "exponential":
            return math.exp(min(t * math.log1p(scoping), _LARGEST))
        case "linear":
            return 1 + scoping * t
        case "quadratic":
            return 1 + scoping * t**2
        case _:
            return -math.expm1(-scoping * t)


class Exploring(Descent):
    """What explores around a center: Langevin steps held by a spring."""

    _warned = False
    shared: tuple[str, ...] = ("inner_steps", "skip_first_eval", "reset_inner_momentum")

    def scope(self, group: dict[str, Any]) -> float:
        """Return γ of this step."""
        t = self.system["steps"] + group["t0"]
        grown = growth(group["scope_schedule"], group["scoping"], t)
        return min(group["gamma"] * grown, group["gamma_max"])

    def inner_rate(self, group: dict[str, Any]) -> float:
        """Return η' of this step."""
        return group["inner_lr"]

    def weight(self, group: dict[str, Any], step: int) -> float:
        """Return α, the weight of the newest exploring point in the mean."""
        return group["alpha"]

    def explore(
        self,
        loss: Number,
        evaluate: Evaluate,
        c: Tensor,
        mean: Tensor,
        u: Tensor,
        measured: bool = False,
    ) -> Number:
        """Take L exploring steps from the present point.

        Args:
            loss: At the present point, as is the gradient.
            evaluate: See `update`.
            c: Center, shape (n,).
            mean: Set to the mean of the points, shape (n,).
            u: Inner momentum, shape (n,); written.
            measured: Whether the return value is wanted.

        Returns:
            Mean distance from the center, 0 if not measured.
        """
        head = self.param_groups[0]
        L, skip = head["inner_steps"], head["skip_first_eval"]
        mean.copy_(self.x)
        self.set_out()
        excursion: Number = 0.0
        for step in range(L):
            if step or not skip:
                loss = evaluate()
            self.wander(step, loss, self.x, self.g, c, mean, u)
            if measured:
                excursion = excursion + square_norm(self.x - c) ** 0.5
        return excursion / L

    def set_out(self) -> None:
        """Prepare the numbers of an exploration."""
        self._rules = [self._rule(group) for group in self.param_groups]

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
        """Take one exploring step and count it in the mean.

        Args:
            step: Its number, from 0.
            loss: At the exploring point.
            x: The exploring point, shape (n,); written.
            g: Gradient there, shape (n,).
            c: Center, shape (n,).
            mean: Running mean, shape (n,); written.
            u: Inner momentum, shape (n,); written.
        """
        # a checkpoint of another precision keeps its own: only torch mixes them
        body = self.body_of(self.x) if u.dtype == mean.dtype else Eager()
        counter = self.system["steps"] * self.param_groups[0]["inner_steps"] + step
        for (group, part), rule in zip(self.parts, self._rules, strict=True):
            rule = rule._replace(alpha=self.weight(group, step))
            draw = (group["seed"], counter, part.start)
            body.explore(x[part], g[part], c[part], u[part], mean[part], rule, draw)

    def _rule(self, group: dict[str, Any]) -> Exploration:
        """Return the numbers of an exploring step."""
        inside, decay = group["force_in_momentum"], group["weight_decay"]
        spring, thermal = self.scope(group), self._thermal(group)
        decays = (
            decay * (group["inner_wd"] == "inside"),
            decay * (group["inner_wd"] == "outside"),
        )
        return Exploration(
            lr=self.inner_rate(group),
            momentum=group["inner_momentum"],
            fresh=1 - group["dampening"],
            nesterov=group["inner_nesterov"],
            alpha=0.0,
            inside=(decays[0], spring * inside, thermal * inside),
            outside=(decays[1], spring * (not inside), thermal * (not inside)),
        )

    def _thermal(self, group: dict[str, Any]) -> float:
        """Return the size of the thermal force: η' times it is ε √(2 η') or ε √η'."""
        rate, twice = self.inner_rate(group), group["noise_scale"] == "sqrt(2 inner_lr)"
        return group["noise"] * ((2 if twice else 1) / rate) ** 0.5 if rate else 0.0

    def work(self, name: str) -> Tensor:
        """Return a vector whose content means nothing between steps."""
        if name not in self._scratch:
            self._scratch[name] = self.new_vector()
        return self._scratch[name]

    def _rebound(self, former: FlatParameters | None) -> None:
        self._scratch: dict[str, Tensor] = {}

    def stiffest(self, group: dict[str, Any]) -> float:
        """Return the largest η' γ at which the exploring point is stable."""
        m = group["inner_momentum"]
        inside = group["force_in_momentum"] and group["inner_nesterov"]
        return (2 + 2 * m) / (1 + 2 * m) if inside else 2.0

    def _warn(self) -> None:
        """Warn once of settings whose exploration or outer move is unstable."""
        if self._warned:
            return
        for group in self.param_groups:
            inner_lr, limit = self.inner_rate(group), self.stiffest(group)
            stiffness = inner_lr * self.scope(group)
            if group["inner_steps"] and stiffness > limit:
                self._warned = True
                warnings.warn(
                    f"the inner step times gamma has grown to {stiffness:.3g}, beyond "
                    f"{limit:.3g} the exploring point is unstable: keep gamma below "
                    f"{limit / inner_lr:.3g}",
                    stacklevel=4,
                )
            reach = group["lr"] / (1 - group["outer_momentum"])
            if group["inner_steps"] and reach > _REACH:
                self._warned = True
                warnings.warn(
                    f"lr / (1 - momentum) of the outer move is {reach:.3g}, beyond "
                    f"{_REACH:g} the parameters overshoot the mean: lower lr or this "
                    "momentum",
                    stacklevel=4,
                )


class LocalEntropy(Exploring):
    """The engine that the local-entropy family shares.

    Subclasses choose defaults and how the parameters follow the mean (`follow`). All
    groups explore together; each may have its own lr, scope, noise and decay.

    `info` holds ``gamma`` and, every `diagnostics_every` steps, ``gradient`` |∇f(x)|,
    ``displacement`` |x - μ|, ``cosine`` of these two, ``noise``, the
    length of the last noise force, ``excursion``, the mean of |x' - x|,
    ``matched_gamma`` = |∇f(x)|/|x - μ|, at which both gradients are equally long, and
    mean and standard deviation of the weights and the extremes of |∇f|.
    """

    def update(self, loss: Number, evaluate: Evaluate) -> None:
        """Explore around x, then move x towards the mean of what was seen."""
        head, steps = self.param_groups[0], self.system["steps"]
        self.info = {}
        self._warn()
        if head["inner_steps"] == 0:
            self.follow_gradient()
            return
        every = head["diagnostics_every"]
        due = every > 0 and (steps + 1) % every == 0
        first = self.g.clone() if due or self.keeps_first() else None
        c, mean = self.work("center"), self.work("mean")
        self._home = c.copy_(self.x)
        excursion = self.explore(loss, evaluate, c, mean, self._momentum_inside(), due)
        self.info["gamma"] = self.scope(head)
        if due and first is not None:
            self._diagnose(first, c, mean)
            self.info["excursion"] = excursion
        for group, part in self.parts:
            own = None if first is None else first[part]
            d = self.direction(group, c[part], mean[part], own)
            self.follow(group, part, c[part], d, own)

    def keeps_first(self) -> bool:
        """Return whether `follow` wants to know the gradient at x."""
        return False

    def direction(
        self, group: dict[str, Any], c: Tensor, mean: Tensor, first: Tensor | None
    ) -> Tensor:
        """Return D = x - μ, the direction of the local entropy's gradient.

        Args:
            group: Hyper-parameters.
            c: The center x, shape (k,).
            mean: Mean μ of the exploring points, shape (k,); written.
            first: Gradient at the center, if it was kept, shape (k,).
        """
        return mean.sub_(c).neg_()

    @abstractmethod
    def follow(
        self,
        group: dict[str, Any],
        part: slice,
        c: Tensor,
        d: Tensor,
        first: Tensor | None,
    ) -> None:
        """Set x, given the center and the direction D.

        Args:
            group: Hyper-parameters.
            part: Where the group lies in the vectors.
            c: The center, shape (k,).
            d: Direction, shape (k,); may be written.
            first: Gradient at the center, if it was kept, shape (k,).
        """

    def follow_gradient(self) -> None:
        """Follow the gradient instead of the local entropy's: L = 0."""
        d = self.decayed(self.g, self.x)
        for group, part in self.parts:
            self.follow(group, part, self.x[part], d[part], self.g[part])

    def _momentum_inside(self) -> Tensor:
        """Return u; any vector where no group has an inner momentum."""
        if not any(group["inner_momentum"] for group in self.param_groups):
            return self.work("mean")
        if self.param_groups[0]["reset_inner_momentum"]:
            return self.work("inner_momentum").zero_()
        return self.kept("inner_momentum")

    def outer_noise(self, group: dict[str, Any], part: slice, like: Tensor) -> Tensor:
        """Return standard normals for the move of x, shaped as `like`."""
        seed, steps = mixed(group["seed"], _OUTER), self.system["steps"]
        return self.body_of(self.x).normals(like, seed, steps, part.start)

    def _diagnose(self, first: Tensor, c: Tensor, mean: Tensor) -> None:
        """Measure what the step did; `mean` and `c` are those of the whole vector."""
        away = c - mean
        gradient, displacement = square_norm(first) ** 0.5, square_norm(away) ** 0.5
        group, L = self.param_groups[0], self.param_groups[0]["inner_steps"]
        noise: Number = 0.0
        if group["noise"]:
            counter = self.system["steps"] * L + L - 1
            z = self.body_of(c).normals(c, group["seed"], counter, 0)
            noise = self._thermal(group) * square_norm(z) ** 0.5
        self.info |= {
            "gradient": gradient,
            "displacement": displacement,
            "cosine": dot(first, away) / (gradient * displacement + 1e-30),
            "noise": noise,
            "matched_gamma": gradient / (displacement + 1e-30),
            "weight_mean": number(c.mean()),
            "weight_std": number(c.std(correction=0)),
            "gradient_max": number(first.abs().max()),
            "gradient_min": number(first.abs().min()),
        }
