"""Random bases descent, and fixed projection descent: what they are and take."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from torch import Tensor

from lightning_ecd.bases import BASES
from lightning_ecd.errors import UserError
from lightning_ecd.flat import FlatParameters
from lightning_ecd.optimizers.base import ParamsT
from lightning_ecd.optimizers.directions import (
    FAMILY,
    BasisName,
    Division,
    Normalization,
    Transformation,
    require,
)
from lightning_ecd.optimizers.ranks import ranks
from lightning_ecd.optimizers.subspace import Subspace
from lightning_ecd.ranges import Integers, LogUniform

#: Switches that read the gradient of one worker: several would take other steps.
_ALONE: dict[str, Any] = {
    "surgeon": None,
    "correlation_multiplier": False,
    "sgd_tensor": 0,
    "sgd_below": None,
    "sgd_first": 0,
    "sgd_from": None,
    "displaced": False,
    "redraw": "all",
    "continuous": False,
}


class RBD(Subspace):
    r"""Random bases descent: moves along a few directions, drawn anew at every step.

    The gradient is known only by its products with d random directions; these are
    made from a seed whenever they are needed, so that workers exchange d numbers.

    .. math:: c = T(P g), \qquad s = P^T c, \qquad w \leftarrow w - \eta\, s

    with rows :math:`\phi_i = e_i/\sqrt D` of P and a transformation T, by default
    none. In the mean s is d/D times the gradient.

    Args:
        params: Parameters or groups; a group with `dimensions` of its own is a
            compartment.
        lr: Step size η > 0.
        dimensions: d >= 1, directions of a compartment; with compartments "linear" and
            "superlinear" parameters per direction.
        basis: Law of the directions, see `lightning_ecd.bases`.
        normalize: Length of the directions, see `lightning_ecd.bases.Projector`; a
            number ν > 0 divides them.
        compartments: How tensors share bases, see `lightning_ecd.bases.divide`.
        compartment_size: Parameters, or layers, of a compartment, >= 1.
        split_dimensions: Share the d directions among compartments of one size.
        redraw_every: Steps R >= 0 that a basis lives; 0: for ever.
        stored: Keep rows that live on in memory, d n numbers; those of srht and
            countsketch are made faster than read, and never kept.
        transformation: T of the coordinates: "norm" and "ranks" lead to [-1/2, 1/2].
        top_fraction: In [-1, 1]: keep this part of the coordinates, the largest in
            magnitude; negative: the smallest.
        top_count: Keep so many, the largest with their signs; negative: all but so
            many; 0: all.
        weight_decay: L2 factor λ >= 0: g + λ w takes the place of g.
        momentum: m in [0, 1): v ← m v + (1 - m) s takes the place of s.
        inner: What is done with s: "sgd" subtracts η s; "adam" treats s as a gradient;
            "coordinate_adam" treats c so, before it is expanded.
        continuous: Gather c within a window of R steps, apply selection, momentum and
            the switches on correlations only at its end.
        correlation_multiplier: Multiply s by max(cos(g, s), 0), tensor by tensor.
        surgeon: Smallest cos(g, s) of a tensor that moves, in [-1, 1]; null: any.
        sgd_lr: Step size > 0 of plain gradient steps, where the next four ask for them.
        sgd_first: Steps of SGD before the first along random directions, >= 0.
        sgd_from: First step, >= 0, from which on all are of SGD; null: none.
        sgd_tensor: Number of the tensor, from 1, that takes SGD steps; negative: all
            but it; 0: none.
        sgd_below: Take an SGD step where the smallest cos(g, s) is below; null: never.
        redraw: Redraw only directions of "low" or "high" |c| every R steps; "all".
        redraw_fraction: Part of them, in [0, 1].
        displaced: Measure c at w + Pᵀ c of the step before, as released for bases that
            are not drawn anew: one more evaluation.
        workers: Of this process, >= 1, each with a mini-batch of its own.
        share_basis: All workers use the same directions: their coordinates are reduced
            before T.
        reduce: "mean" or "sum" over workers.
        diagnostics_every: Steps between diagnostics; 0: none.
        second_order: Let diagnostics hold the norm of every direction's second-order
            contribution; needs rows.
        seed: Of the directions.
        explicit: Rows (d, n) as a function of (redraw, compartment) in place of a
            basis; only from Python.

    Note:
        Departures from the released code, which is reproduced by switches: the
        gradient is taken at w (`displaced`), workers are averaged (`reduce`),
        "bernoulli_reference" has its mean, schedules of SGD count steps.

    Reference:
        F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network training in
        low dimensional random bases", NeurIPS 2020, arXiv 2011.04720.
    """

    traits = replace(
        FAMILY,
        summary="descent in random bases, drawn anew at every step",
        closure=True,
        evaluations="workers + displaced",
        minibatches="workers",
        state="(momentum != 0) + 2 * (inner == 'adam')"
        " + (continuous and redraw_every > 1)",
        scaler=False,
    )
    own = ("lr", "dimensions", "weight_decay", "sgd_lr")
    bounds = {
        "lr": "(0, inf)",
        "dimensions": "[1, inf)",
        "compartment_size": "[1, inf)",
        "redraw_every": "[0, inf)",
        "top_fraction": "[-1, 1]",
        "weight_decay": "[0, inf)",
        "momentum": "[0, 1)",
        "surgeon": "[-1, 1]",
        "sgd_lr": "(0, inf)",
        "sgd_first": "[0, inf)",
        "sgd_from": "[0, inf)",
        "sgd_below": "[-1, 1]",
        "redraw_fraction": "[0, 1]",
        "workers": "[1, inf)",
        "diagnostics_every": "[0, inf)",
    }

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 1.0,
        dimensions: Annotated[int, Integers(10, 1000)] = 250,
        basis: BasisName = "normal",
        normalize: float | Normalization = "auto",
        compartments: Division = "one",
        compartment_size: int = 30_000,
        split_dimensions: bool = False,
        redraw_every: int = 1,
        stored: bool = False,
        transformation: Transformation = "none",
        top_fraction: float | None = None,
        top_count: int = 0,
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        momentum: float = 0.0,
        inner: Literal["sgd", "adam", "coordinate_adam"] = "sgd",
        continuous: bool = False,
        correlation_multiplier: bool = False,
        surgeon: float | None = None,
        sgd_lr: float = 2**-8,
        sgd_first: int = 0,
        sgd_from: int | None = None,
        sgd_tensor: int = 0,
        sgd_below: float | None = None,
        redraw: Literal["all", "low", "high"] = "all",
        redraw_fraction: float = 0.5,
        displaced: bool = False,
        workers: int = 1,
        share_basis: bool = False,
        reduce: Literal["mean", "sum"] = "mean",
        diagnostics_every: int = 50,
        second_order: bool = False,
        seed: int = 0,
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        others = ("self", "params", "explicit", "__class__")
        defaults = {k: v for k, v in locals().items() if k not in others}
        super().__init__(params, defaults, explicit)
        self._refuse()

    def _rebound(self, former: FlatParameters | None) -> None:
        """Refuse what several processes cannot do, once they are there."""
        super()._rebound(former)
        if ranks() == 1:
            return
        try:
            self._refuse(several=True)
        except ValueError as error:
            raise UserError(f"on {ranks()} processes {error}") from error

    def _refuse(self, several: bool = False) -> None:
        """Refuse switches that contradict each other."""
        head = self.param_groups[0]
        require(type(self), head)
        name, window = head["basis"], head["redraw_every"] > 1
        lives_on = head["redraw_every"] != 1 or head["stored"] or head["displaced"]
        several = several or head["workers"] > 1
        more = several or head["second_order"]
        if not BASES[name].rows_exist and (lives_on or more):
            raise ValueError(
                "basis must be one with rows for redraw_every other than 1, stored, "
                f"displaced, second_order or several workers, got {name!r}: it draws "
                "coordinates and move from their law"
            )
        partly, gathers = head["redraw"] != "all", head["continuous"]
        if partly and not BASES[name].rows_independent:
            raise ValueError(
                f"basis must be one of independent rows for redraw={head['redraw']!r}, "
                f"got {name!r}"
            )
        if (partly or gathers) and not window:
            raise ValueError(
                "redraw_every must be above 1 for continuous=True and for redraw='low' "
                f"or 'high', got {head['redraw_every']}"
            )
        if gathers and head["inner"] != "sgd":
            raise ValueError(
                f"inner must be sgd for continuous=True, got {head['inner']!r}"
            )
        if several:
            self._refuse_alone()

    def _refuse_alone(self) -> None:
        """Refuse, with several workers, what reads one worker's gradient."""
        head = self.param_groups[0]
        for name, off in _ALONE.items():
            if head[name] != off:
                raise ValueError(
                    f"{name} must be {off} with several workers, got {head[name]}: it "
                    "reads the gradient of one"
                )
        if head["inner"] == "coordinate_adam" and not head["share_basis"]:
            raise ValueError(
                "inner must be sgd or adam with several workers that do not share a "
                f"basis, got {head['inner']!r}"
            )


class FPD(RBD):
    r"""Fixed projection descent: the same random directions for the whole training.

    .. math:: c = P g, \qquad w \leftarrow w - \eta\, P^T c

    with one P for ever: training within a random subspace of d dimensions, whose
    smallest sufficient d measures how hard a task is (its intrinsic dimension).

    Args:
        params: Parameters or groups; a group with `dimensions` of its own is a
            compartment.
        lr: Step size η > 0.
        dimensions: See `RBD`.
        basis: See `RBD`; not one in law.
        normalize: See `RBD`.
        compartments: See `RBD`.
        compartment_size: See `RBD`.
        split_dimensions: See `RBD`.
        stored: Keep the d n numbers of P in memory; see `RBD`.
        transformation: See `RBD`.
        weight_decay: L2 factor λ >= 0.
        momentum: See `RBD`.
        inner: See `RBD`; "coordinate_adam" trains the coordinates by Adam.
        displaced: Measure c at w + Pᵀ c of the step before, as released: one more
            evaluation.
        workers: See `RBD`.
        share_basis: See `RBD`.
        reduce: See `RBD`.
        diagnostics_every: Steps between diagnostics; 0: none.
        seed: Of the directions.
        explicit: See `RBD`.

    Note:
        The released code takes the gradient at w + Pᵀ c of the step before, which is
        uphill (`displaced`); here it is taken at w.

    Reference:
        C. Li, H. Farkhoor, R. Liu, J. Yosinski, "Measuring the intrinsic dimension of
        objective landscapes", ICLR 2018, arXiv 1804.08838; as a baseline in F.
        Gressmann, Z. Eaton-Rosen, C. Luschi, NeurIPS 2020, arXiv 2011.04720.
    """

    traits = replace(
        RBD.traits,
        summary="descent in one random subspace",
        paper="Li, Farkhoor, Liu, Yosinski, ICLR 2018, arXiv 1804.08838",
        state="(momentum != 0) + 2 * (inner == 'adam')",
    )

    def __init__(
        self,
        params: ParamsT,
        lr: Annotated[float, LogUniform(2**-18, 32.0)] = 1.0,
        dimensions: Annotated[int, Integers(10, 1000)] = 250,
        basis: BasisName = "normal",
        normalize: float | Normalization = "auto",
        compartments: Division = "one",
        compartment_size: int = 30_000,
        split_dimensions: bool = False,
        stored: bool = True,
        transformation: Transformation = "none",
        weight_decay: Annotated[float, LogUniform(1e-6, 1e-2)] = 0.0,
        momentum: float = 0.0,
        inner: Literal["sgd", "adam", "coordinate_adam"] = "sgd",
        displaced: bool = False,
        workers: int = 1,
        share_basis: bool = False,
        reduce: Literal["mean", "sum"] = "mean",
        diagnostics_every: int = 50,
        seed: int = 0,
        explicit: Callable[[int, int], Tensor] | None = None,
    ):
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__(redraw_every=0, **given)
