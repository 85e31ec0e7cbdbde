r"""Replicas that explore apart and are drawn to their mean: Parle, Elastic-SGD.

========  ======================  ==============================================
symbol    variable                shape and meaning
========  ======================  ==============================================
x         ``x``                   (n,) the master, mean of all x_i
x_i - x   ``offset_k``            (n,) where replica i stands; k counts all ranks'
μ_i       ``ends[i]``             (n,) running mean of its exploring points
r         ``r``                   (n,) mean of all μ_i
u_i       ``inner_momentum_k``    (n,) momentum of the exploring point
v_i       ``momentum_k``          (n,) momentum of the replica
========  ======================  ==============================================
"""

import math
from dataclasses import replace
from typing import Annotated, Any

import torch
from torch import Tensor, distributed

from lightning_ecd.flat import square_norm
from lightning_ecd.optimizers.base import Evaluate, Number, ParamsT, with_momentum
from lightning_ecd.optimizers.entropy import BOUNDS, resolved
from lightning_ecd.optimizers.evaluations import Value
from lightning_ecd.optimizers.exploration import FAMILY, Exploring
from lightning_ecd.optimizers.ranks import rank, ranks
from lightning_ecd.ranges import Integers, LogUniform, Uniform

_BOUNDS = ("lr", "momentum", "weight_decay", "inner_steps", "inner_lr", "gamma")
_EVALUATIONS = "replicas * (inner_steps + (inner_steps == 0))"


class _Replicas(Exploring):
    """Replicas, as many on every rank, held together by springs to their mean."""

    local_gradients = True
    uses_values = True
    shared = (*Exploring.shared, "replicas")
    bounds = {
        **{name: BOUNDS[name] for name in (*_BOUNDS, "scoping", "gamma_max", "alpha")},
        "replicas": "[1, inf)",
        "rho": "[0, inf)",
        "rho_max": "(0, inf]",
    }
    #: Vectors of all ranks, by name, once gathered for a checkpoint.
    _gathered: dict[str, Tensor] | None = None

    def begin(self) -> None:
        """Leave the master for the first replica."""
        self._home = self.x.clone()
        self.x.add_(self._own("offset", 0))

    def update(
        self, loss: Number, evaluate: Evaluate, value: Value | None = None
    ) -> None:
        """Let every replica explore, then draw all to their mean."""
        head, master = self.param_groups[0], self._home
        assert master is not None  # left in `begin`
        self._warn()
        places = range(head["replicas"])
        centers = [self.new_vector().copy_(master) for _ in places]
        for i in places:
            centers[i].add_(self._own("offset", i))
        if value is not None and value.stateless and len(places) > 1:
            ends = self._together(value, centers)
        else:
            ends = self._in_turn(loss, evaluate, centers)
        r = self._mean(torch.stack(ends if head["inner_steps"] else centers).sum(0))
        for i in places:
            self._move(i, centers[i], ends[i], r)
        self.x.copy_(self._mean(torch.stack(centers).sum(0)))
        for i in places:
            self._own("offset", i).copy_(centers[i]).sub_(self.x)
        squares = [square_norm(self._own("offset", i)) for i in places]
        self.info = {"gamma": self.scope(head), "rho": self.pull(head)}
        self.info["spread"] = (sum(squares) / len(squares)) ** 0.5

    def _in_turn(
        self, loss: Number, evaluate: Evaluate, centers: list[Tensor]
    ) -> list[Tensor]:
        """Return μ_i of every replica, or with L = 0 where its gradient leads."""
        head, ends = self.param_groups[0], []
        for i, c in enumerate(centers):
            if i:
                self.x.copy_(c)
                loss = evaluate()
            if head["inner_steps"]:
                mean = self.new_vector()
                self.explore(loss, evaluate, c, mean, self._inner_momentum(i, c))
                ends.append(mean)
            else:
                ends.append(c - self.decayed(self.g, c))
        return ends

    def _together(self, value: Value, centers: list[Tensor]) -> list[Tensor]:
        """Return the same, all replicas at once, on the mini-batches of `_in_turn`."""
        n, L = len(centers), self.param_groups[0]["inner_steps"]
        points = torch.stack(centers).to(self.x.dtype)
        gradients = self.g[None]  # of the first replica, by the closure
        means = [c.clone() for c in centers]
        self.set_out()
        for step in range(max(L, 1)):
            parts = [i * max(L, 1) + step for i in range(n)]
            if step:
                losses, gradients = value(points, True, parts)
            else:
                losses, others = value(points[1:], True, parts[1:])
                gradients = torch.cat([gradients, others])
            self._require_finite(losses)
            for i, c in enumerate(centers):
                if L == 0:
                    means[i] = c - self.decayed(gradients[i], c)
                    continue
                u, mean = self._inner_momentum(i, c), means[i]
                # Langevin dynamics does not ask for the loss
                self.wander(step, math.nan, points[i], gradients[i], c, mean, u)
        return means

    def _inner_momentum(self, i: int, like: Tensor) -> Tensor:
        """Return u_i; any vector where there is no momentum."""
        momentum = any(group["momentum"] for group in self.param_groups)
        return self._own("inner_momentum", i) if momentum else like

    def _move(self, i: int, x_i: Tensor, mean: Tensor, r: Tensor) -> None:
        """Set v ← m v + D, x_i ← x_i - η (D + m v), D = x_i - μ_i + ρ (x_i - r)."""
        for group, part in self.parts:
            m = group["momentum"]
            d = x_i[part] - mean[part]
            d.add_(x_i[part] - r[part], alpha=self.pull(group))
            if m:
                d = with_momentum(self._own("momentum", i)[part], d, m, True)
            x_i[part].sub_(d, alpha=group["lr"])

    def pull(self, group: dict[str, Any]) -> float:
        """Return ρ of this step: it grows as γ does."""
        like = {**group, "gamma": group["rho"], "gamma_max": group["rho_max"]}
        return self.scope(like)

    # -- ranks ---------------------------------------------------------------------

    def _own(self, name: str, i: int) -> Tensor:
        """Return a vector of replica i of this rank."""
        return self.kept(f"{name}_{rank() * self.param_groups[0]['replicas'] + i}")

    def _mean(self, total: Tensor) -> Tensor:
        """Return the mean over all ranks' replicas of what a rank has summed."""
        if ranks() > 1:
            distributed.all_reduce(total)
        return total.div_(self.param_groups[0]["replicas"] * ranks())

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Gather the replicas of all ranks for `state_dict`; every rank must call it.

        Args:
            to: The rank that wants them; all get them.
        """
        gathered, replicas = {}, self.param_groups[0]["replicas"]
        for name, vector in self._in_checkpoint_order(self.vectors).items():
            pieces = [torch.empty_like(vector) for _ in range(ranks())]
            if ranks() > 1:
                distributed.all_gather(pieces, vector)
            else:
                pieces = [vector]
            kind, own = name.rsplit("_", 1)
            for other, piece in enumerate(pieces):
                gathered[f"{kind}_{int(own) % replicas + other * replicas}"] = piece
        self._gathered = gathered

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state, or after `consolidate_state_dict` all ranks'."""
        packed = super().state_dict()
        if self._gathered:
            packed["state"][0] = self._gathered
        self._gathered = None
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this rank's replicas out of all ranks'."""
        super().load_state_dict(state_dict)
        each = self.param_groups[0]["replicas"]
        found = sum(name.startswith("offset_") for name in self.vectors)
        if found not in (0, each * ranks()):
            raise ValueError(
                f"the checkpoint has {found} replicas, {each} on each of {ranks()} "
                "ranks are wanted: resume on as many ranks as before"
            )
        mine = range(rank() * each, (rank() + 1) * each)
        for name in list(self.vectors):
            if int(name.rsplit("_", 1)[1]) not in mine:
                del self.vectors[name]


class Parle(_Replicas):
    r"""Entropy-SGD on several replicas, which are drawn to the mean of all.

    Every replica explores by L steps around itself, then moves towards the mean μ_i of
    its exploring points and the mean r of all of them; both springs stiffen.

    .. math:: q = \nabla f(x') + \lambda x' + \gamma (x' - x_i), \quad
        u_i \leftarrow m u_i + q, \quad x' \leftarrow x' - \eta' (q + m u_i), \quad
        \mu_i \leftarrow (1 - \alpha)\,\mu_i + \alpha x' \quad (L \text{ times})

    .. math:: D = x_i - \mu_i + \rho\,(x_i - r), \qquad v_i \leftarrow m v_i + D,
        \qquad x_i \leftarrow x_i - \eta\,(D + m v_i)

    On several ranks each has `replicas` of its own, whose gradients are not averaged:
    they meet once in L evaluations.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0 of the replicas.
        momentum: m in [0, 1) of both moves, Nesterov's.
        weight_decay: L2 factor λ >= 0.
        replicas: On every rank, >= 1.
        inner_steps: L >= 0; 0: the gradient takes the place of x_i - μ_i.
        inner_lr: Step size η' > 0 of the exploring points.
        gamma: Initial scope γ0 >= 0.
        scoping: Growth γ1 >= 0 of γ and ρ, which are γ0 and ρ0 times (1 + γ1)^t.
        gamma_max: Largest γ > 0.
        rho: Initial ρ0 >= 0, pull towards the mean of all.
        rho_max: Largest ρ > 0.
        alpha: Weight α in (0, 1] of the newest point in μ_i.

    Note:
        After a step the parameters are the master, the mean of all replicas. The loss
        that a step returns is that of its first evaluation, at the first replica.
        `info` holds ``gamma``, ``rho`` and ``spread``, the root mean square distance
        of this process's replicas from the master. Outside Lightning, wrap the closure
        in DDP's ``no_sync``.

    Reference:
        P. Chaudhari et al., "Parle: parallelizing stochastic gradient descent", 2017,
        arXiv 1707.00424.
    """

    traits = replace(
        FAMILY,
        summary="replicas that explore apart, drawn to their mean",
        paper="Chaudhari et al., 2017, arXiv 1707.00424",
        evaluations=_EVALUATIONS,
        minibatches=_EVALUATIONS,
        state="replicas * (1 + (momentum != 0) * (1 + (inner_steps > 0)))",
        draws_noise=False,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, Uniform(0.02, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        replicas: int = 3,
        inner_steps: Annotated[int, Integers(5, 25)] = 25,
        inner_lr: Annotated[float, Uniform(0.02, 1.0)] = 0.1,
        gamma: Annotated[float, LogUniform(1e-4, 1.0)] = 0.01,
        scoping: Annotated[float, LogUniform(1e-5, 1.0)] = 0.5,
        gamma_max: float = 1.0,
        rho: Annotated[float, LogUniform(1e-2, 10.0)] = 1.0,
        rho_max: float = 10.0,
        alpha: float = 1.0,
    ):
        switches = resolved(
            "hj",
            momentum=momentum,
            inner_lr=inner_lr,
            gamma_max=gamma_max,
            alpha=alpha,
            inner_nesterov=True,
            skip_first_eval=True,
        )
        defaults = {
            "lr": lr,
            "dampening": 0.0,
            "weight_decay": weight_decay,
            "replicas": replicas,
            "inner_steps": inner_steps,
            "gamma": gamma,
            "scoping": scoping,
            "noise": 0.0,
            "scope_schedule": "exponential",
            "rho": rho,
            "rho_max": rho_max,
            "seed": 0,
            **switches,
        }
        super().__init__(params, defaults)


class ElasticSGD(Parle):
    r"""SGD on several replicas, drawn to their mean at every step.

    .. math:: D = \nabla f(x_i) + \lambda x_i + \rho\,(x_i - r), \qquad
        v_i \leftarrow m v_i + D, \qquad x_i \leftarrow x_i - \eta\,(D + m v_i)

    `Parle` without exploration, L = 0; see there for ranks and for what a step leaves
    behind.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        momentum: m in [0, 1), Nesterov's.
        weight_decay: L2 factor λ >= 0.
        replicas: On every rank, >= 1.
        rho: Initial ρ0 >= 0, pull towards the mean of all.
        scoping: Growth γ1 >= 0 of ρ, which is ρ0 (1 + γ1)^t.
        rho_max: Largest ρ > 0.

    Reference:
        S. Zhang, A. Choromanska, Y. LeCun, "Deep learning with elastic averaging
        SGD", NeurIPS 2015, arXiv 1412.6651; in the form of arXiv 1707.00424.
    """

    traits = replace(
        Parle.traits,
        summary="SGD on replicas, drawn to their mean",
        paper="Zhang, Choromanska, LeCun, NeurIPS 2015, arXiv 1412.6651",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(1e-3, 1.0)] = 0.1,
        momentum: float = 0.9,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        replicas: int = 3,
        rho: Annotated[float, LogUniform(1e-2, 10.0)] = 1.0,
        scoping: float = 0.0,
        rho_max: float = 10.0,
    ):
        super().__init__(
            params,
            lr,
            momentum,
            weight_decay,
            replicas,
            inner_steps=0,
            scoping=scoping,
            rho=rho,
            rho_max=rho_max,
        )
