r"""Descent by losses alone, at points along random directions: NES and its relatives.

========  ====================  ==================================================
symbol    variable              shape and meaning
========  ====================  ==================================================
w         ``x``                 (n,) parameters
e_i       ``rows``              (d, n) raw directions, entries of mean square 1
φ_i       ``rows``              (d, n) normalized directions
F_i       ``losses``            (d,) losses at w + σ e_i
σ         ``std``               distance of the points
========  ====================  ==================================================
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lightning_ecd.bases import BASES, Projector
from lightning_ecd.flat import number
from lightning_ecd.optimizers.base import Evaluate, Number, ParamsT
from lightning_ecd.optimizers.coordinates import transformed
from lightning_ecd.optimizers.directions import (
    FAMILY,
    BasisName,
    Directions,
    Normalization,
    Transformation,
    require,
)
from lightning_ecd.optimizers.evaluations import Value
from lightning_ecd.optimizers.ranks import averaged
from lightning_ecd.randomness import mixed
from lightning_ecd.ranges import Integers, LogUniform

#: Separates what the network draws from the directions.
_NETWORK = 0x0E57
#: Points in memory at once.
_CHUNK = 16
#: One basis for all parameters, drawn anew at every step.
_ONE = {
    "compartments": "one",
    "compartment_size": 1,
    "split_dimensions": False,
    "stored": False,
    "redraw_every": 1,
}


class ZeroOrder(Directions):
    """Evaluates losses along random directions of one basis."""

    uses_values = True
    own = ("lr",)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the basis must have rows."""
        super().add_param_group(param_group)
        head = self.param_groups[0]
        require(type(self), head)
        if not BASES[head["basis"]].rows_exist and self.explicit is None:
            raise ValueError(
                "basis must be one with rows to evaluate the loss along, got "
                f"{head['basis']!r}"
            )

    def losses(
        self,
        points: Tensor,
        parts: Sequence[int],
        evaluate: Evaluate,
        value: Value | None,
    ) -> Tensor:
        """Return the losses at points (P, n), each on its part of the batch, (P,).

        All at once where the caller of `step` can; else one by one, on the mini-batch
        that is next. Averaged over processes, which all look at the same points.
        Dropout is the same at all points: its noise would drown their differences.
        """
        if value is not None:
            found = value(points, parts=parts, draws=self._draws())
            found = averaged(found)
            self._require_finite(found)
            return found
        losses = []
        for point in points:
            self.x.copy_(point)
            found = torch.as_tensor(evaluate(), dtype=points.dtype)
            losses.append(found.to(points.device))
        return averaged(torch.stack(losses))

    def _draws(self) -> int:
        """Return the seed of what the network draws in this step."""
        return mixed(self.param_groups[0]["seed"], _NETWORK, self.system["steps"])

    def follow(self, projector: Projector, c: Tensor, size: float = 1.0) -> None:
        """Set w ← w - η size Σ c_i φ_i."""
        s = projector.expand(c)
        for group, part in self.parts:
            self.x[part].sub_(s[part], alpha=group["lr"] * size)


class NES(ZeroOrder):
    r"""Natural evolution strategies: follows the ranks of losses at random points.

    .. math:: F_i = f_i(w + \sigma e_i), \qquad w \leftarrow w + \eta \sum_{i=1}^d
        \frac{T_i}{\sigma d}\, \phi_i

    where T is 1/2 for the smallest loss, -1/2 for the largest and linear in the rank
    between them. Every point has a mini-batch f_i of its own.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        dimensions: d >= 1, points per step.
        std: Distance σ > 0 of the points.
        basis: Law of the directions e, see `lightning_ecd.bases`; not one in law.
        normalize: Length of the directions φ, see `lightning_ecd.bases.Projector`.
        transformation: "ranks"; "norm": linear in the loss, between -1/2 and 1/2;
            "none": the mean of all losses minus each.
        antithetic: Points in pairs w ± σ e_i on one mini-batch each, d/2 directions.
        fresh: Whether every point (pair) has a mini-batch of its own.
        seed: Of the directions.
        explicit: Rows (d, n) as a function of (step, compartment) in place of a basis;
            only from Python.

    Note:
        The loss that a step returns is that at w, on the first mini-batch. `info` holds
        the ``losses`` F, all + before all -, their mean ``mean_loss`` and the smallest,
        ``least_loss``.

    Reference:
        D. Wierstra et al., "Natural evolution strategies", JMLR 2014, arXiv 1106.4487;
        T. Salimans et al., "Evolution strategies as a scalable alternative to
        reinforcement learning", 2017, arXiv 1703.03864; as a baseline in F. Gressmann,
        Z. Eaton-Rosen, C. Luschi, NeurIPS 2020, arXiv 2011.04720.
    """

    traits = replace(
        FAMILY,
        summary="follows the ranks of losses at random points",
        paper="Wierstra et al., JMLR 2014, arXiv 1106.4487",
        needs_loss=True,
        needs_gradient=False,
        closure=True,
        evaluations="1 + dimensions",
        minibatches="1 + fresh * (dimensions // (1 + antithetic) - 1)",
        state="0",
        accumulation=False,
        scaler=False,
    )
    bounds = {"lr": "(0, inf)", "dimensions": "[1, inf)", "std": "(0, inf)"}
    #: Whether the sum is divided by σ d.
    mean = True

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 1.0,
        dimensions: Annotated[int, Integers(10, 1000)] = 250,
        std: Annotated[float, LogUniform(1e-4, 1e-1)] = 0.01,
        basis: BasisName = "normal",
        normalize: float | Normalization = "auto",
        transformation: Transformation = "ranks",
        antithetic: bool = False,
        fresh: bool = True,
        seed: int = 0,
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        others = ("self", "params", "explicit", "__class__")
        given = {k: v for k, v in locals().items() if k not in others}
        if antithetic and dimensions % 2:
            raise ValueError(f"dimensions must be even, got {dimensions}")
        super().__init__(params, {**given, **_ONE}, explicit)

    def count(self, group: Mapping[str, Any]) -> int:
        """Return how many directions a group asks for: d, or one for every pair."""
        return group["dimensions"] // (1 + group["antithetic"])

    def update(
        self, loss: Number, evaluate: Evaluate, value: Value | None = None
    ) -> None:
        """Evaluate at all points, then follow their ranks."""
        head = self.param_groups[0]
        (projector,) = self.projectors()
        self._home = home = self.x.clone()
        signs = (1, -1) if head["antithetic"] else (1,)
        rows = self.compartments[0].dimensions
        found: list[Tensor] = []
        for start in range(0, rows, _CHUNK):
            stop = min(start + _CHUNK, rows)
            e = projector.raw(start, stop) * head["std"]
            for sign in signs:
                points = (home + sign * e).to(home.dtype)
                found.append(self.losses(points, range(start, stop), evaluate, value))
        self.x.copy_(home)
        plus, minus = found[:: len(signs)], found[1 :: len(signs)]
        F = torch.cat([*plus, *(minus if len(signs) == 2 else [])])
        T = transformed(F, head["transformation"])
        if head["transformation"] == "none":
            T = F - F.mean()
        c = T[:rows] - T[rows:] if len(signs) == 2 else T
        size = 1 / (head["std"] * head["dimensions"]) if self.mean else 1.0
        self.follow(projector, c, size)
        self.info = {
            "mean_loss": number(F.mean()),
            "least_loss": number(F.min()),
            "losses": F,
        }


class RBDNES(NES):
    r"""`NES` on one mini-batch, without the division by σ d.

    .. math:: w \leftarrow w + \eta \sum_{i=1}^d T_i\, \phi_i

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        dimensions: d >= 1, points per step.
        std: Distance σ > 0 of the points.
        basis: See `NES`.
        normalize: See `NES`.
        transformation: See `NES`.
        antithetic: See `NES`.
        seed: Of the directions.
        explicit: See `NES`.

    Reference:
        `rbd_nes` in the code of F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving
        neural network training in low dimensional random bases", NeurIPS 2020, arXiv
        2011.04720.
    """

    traits = replace(
        NES.traits,
        summary="follows the ranks of losses at random points of one mini-batch",
        paper=FAMILY.paper,
        minibatches="1",
    )
    mean = False

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 1e-5,
        dimensions: Annotated[int, Integers(10, 1000)] = 250,
        std: Annotated[float, LogUniform(1e-4, 1e-1)] = 0.002,
        basis: BasisName = "normal",
        normalize: float | Normalization = "auto",
        transformation: Transformation = "ranks",
        antithetic: bool = False,
        seed: int = 0,
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(**given, fresh=False)


class ZeroOrderRBD(ZeroOrder):
    r"""Random bases descent whose coordinates are measured without a gradient.

    .. math:: G_i = \frac{f(w + \delta \phi_i) - f(w - \delta \phi_i)}{2 \delta},
        \qquad w \leftarrow w - \eta \sum_i T(G)_i\, \phi_i

    With one Rademacher direction this is SPSA, with one normal direction MeZO: the
    directions are made again from their seed when they are applied. With more `bins`
    the losses at all offsets make a table of the landscape around w.

    Args:
        params: Parameters or groups.
        lr: Step size η > 0.
        dimensions: d >= 1, directions per step.
        oracle: "central" differences; "forward": (f(w + δ φ) - f(w))/δ; "jvp":
            derivatives by forward-mode differentiation, where the task trains.
        distance: δ > 0 between neighbouring points.
        bins: Points along every direction, with w in the middle; odd, >= 3.
        basis: Law of the directions, see `lightning_ecd.bases`; not one in law.
        normalize: Length of the directions, see `lightning_ecd.bases.Projector`.
        transformation: T of the coordinates: "norm" and "ranks" lead to [-1/2, 1/2].
        seed: Of the directions.
        explicit: Rows (d, n) as a function of (step, compartment) in place of a basis;
            only from Python.

    Note:
        `info` holds the table ``landscape`` of the step, (bins, d) or, with "forward",
        (2, d), and its mean ``mean_loss``; with "jvp" nothing. All evaluations see one
        mini-batch. The release may divide T(G) by a curvature of its own making,
        about -T(G) itself: that is a random walk, and left out.

    Reference:
        J. C. Spall, "Multivariate stochastic approximation using a simultaneous
        perturbation gradient approximation", IEEE TAC 1992; S. Malladi et al.,
        "Fine-tuning language models with just forward passes", NeurIPS 2023, arXiv
        2305.17333; `rbd_landscape` in the code of arXiv 2011.04720.
    """

    traits = replace(
        FAMILY,
        summary="descent in random bases by differences of losses",
        paper="Spall, IEEE TAC 1992; Malladi et al., NeurIPS 2023, arXiv 2305.17333",
        needs_loss=True,
        needs_gradient=False,
        closure=True,
        evaluations="1 + dimensions * ((oracle == 'central') * (bins - 1)"
        " + (oracle == 'forward'))",
        state="0",
        bf16=False,  # differences of losses need the digits
        accumulation=False,
        scaler=False,
    )
    bounds = {
        "lr": "(0, inf)",
        "dimensions": "[1, inf)",
        "distance": "(0, inf)",
        "bins": "[3, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 1.0,
        dimensions: Annotated[int, Integers(1, 1000)] = 250,
        oracle: Literal["central", "forward", "jvp"] = "central",
        distance: Annotated[float, LogUniform(1e-4, 1e-1)] = 0.002,
        bins: int = 3,
        basis: BasisName = "normal",
        normalize: float | Normalization = "auto",
        transformation: Transformation = "none",
        seed: int = 0,
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        others = ("self", "params", "explicit", "__class__")
        given = {k: v for k, v in locals().items() if k not in others}
        if bins % 2 == 0:
            raise ValueError(f"bins must be odd, got {bins}")
        super().__init__(params, {**given, **_ONE}, explicit)

    def update(
        self, loss: Number, evaluate: Evaluate, value: Value | None = None
    ) -> None:
        """Measure the slopes along all directions, then move along them."""
        head = self.param_groups[0]
        (projector,) = self.projectors()
        self._home = home = self.x.clone()
        if head["oracle"] == "jvp":
            slopes = self._derivatives(projector, value)
            self.info = {}
        else:
            F = self._table(projector, home, loss, evaluate, value)
            behind = -1 if head["oracle"] == "central" else 0
            slopes = (F[1] - F[behind]) / (head["distance"] * (1 - behind))
            table = torch.stack([F[offset] for offset in sorted(F)])
            self.info = {"landscape": table, "mean_loss": number(table.mean())}
        self.x.copy_(home)
        self.follow(projector, transformed(slopes, head["transformation"]))

    def _table(
        self,
        projector: Projector,
        home: Tensor,
        loss: Number,
        evaluate: Evaluate,
        value: Value | None,
    ) -> dict[int, Tensor]:
        """Return the losses at w + b δ φ_i, (d,), for every offset b that is wanted."""
        head, d = self.param_groups[0], self.compartments[0].dimensions
        half = head["bins"] // 2 if head["oracle"] == "central" else 0
        offsets = [b for b in range(-half, half + 1) if b] or [1]
        found: dict[int, list[Tensor]] = {b: [] for b in offsets}
        for start in range(0, d, _CHUNK):
            phi = projector.rows(start, min(start + _CHUNK, d))
            for b in offsets:
                points = (home + b * head["distance"] * phi).to(home.dtype)
                losses = self.losses(points, [0] * len(phi), evaluate, value)
                found[b].append(losses)
        table = {b: torch.cat(losses) for b, losses in found.items()}
        if value is not None:  # with the dropout of the other points
            loss = self.losses(home[None], [0], evaluate, value)[0]
        return {0: torch.zeros_like(table[1]) + loss, **table}

    def _derivatives(self, projector: Projector, value: Value | None) -> Tensor:
        """Return φ_i·g by forward-mode differentiation, (d,)."""
        if value is None:
            raise TypeError(
                "oracle='jvp' needs step(closure, value=...), which training by "
                "Lightning brings: use another oracle here"
            )
        d = self.compartments[0].dimensions
        chunks = [(i, min(i + _CHUNK, d)) for i in range(0, d, _CHUNK)]
        rows = (projector.rows(*chunk).to(self.x.dtype) for chunk in chunks)
        return averaged(torch.cat([value.slopes(phi, self._draws()) for phi in rows]))
