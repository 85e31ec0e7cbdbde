r"""Differential equations solved by a network: physics-informed training.

The network :math:`u` is trained at points, not on data: its residual in the equation
and its distance from the boundary values are the loss.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torchmetrics import MaxMetric

from lightning_ecd.checks import above, at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.laplacian import laplacian, probes
from modules.means import Means
from modules.refusals import refuse_misfit
from modules.task import LRSchedulerFactory, Task


class Equation(ABC):
    """An equation in value and Laplacian, whose exact solution is known.

    A subclass states both; everything takes points x of shape (N, D).
    """

    @abstractmethod
    def exact(self, x: Tensor) -> Tensor:
        """Return the exact solution, (N,), also beyond the boundary values."""

    @abstractmethod
    def residual(self, x: Tensor, u: Tensor, laplacian: Tensor) -> Tensor:
        """Return what the equation makes of u and its Laplacian: 0 if it holds, (N,).

        Args:
            x: Points, (N, D).
            u: Values, (N,).
            laplacian: Of u, (N,).
        """

    def boundary(self, x: Tensor) -> Tensor:
        """Return the values u has to take on the boundary, (N,)."""
        return self.exact(x)


class Poisson(Equation):
    r"""A Poisson equation with a quadratic term, made to have a wavy solution.

    .. math::
        -\Delta u + u^2 = f, \quad u = \sin^2(k r^2), \quad
        -\Delta u = -8 k^2 r^2 \cos(2 k r^2) - 2 D k \sin(2 k r^2) .

    Being nonlinear, the equation has other solutions of the same boundary values.

    Args:
        frequency: k, positive; 20 in the paper, for the unit disc: on its boundary
            u = 0.833469.

    Reference:
        G. B. De Luca, E. Silverstein, "Born-Infeld (BI) for AI: Energy-Conserving
        Descent (ECD) for Optimization", ICML 2022, arXiv 2201.11137.
    """

    def __init__(self, frequency: float = 20.0):
        above(0, frequency=frequency)
        self.frequency = frequency

    def exact(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(self.frequency * (x * x).sum(1)) ** 2

    def residual(self, x: Tensor, u: Tensor, laplacian: Tensor) -> Tensor:  # noqa: D102
        k, dimensions = self.frequency, x.shape[1]
        angle = 2 * k * (x * x).sum(1)
        known = 4 * k * angle * torch.cos(angle) + 2 * dimensions * k * torch.sin(angle)
        source = self.exact(x) ** 2 - known
        return -laplacian + u * u - source


class SineProduct(Equation):
    r"""A linear Poisson equation, for the box [-1, 1]^D.

    .. math::
        -\Delta u = D k^2 \pi^2 \prod_i \sin(k \pi x_i) , \quad
        u = \prod_i \sin(k \pi x_i)

    Args:
        frequency: k, an integer where u is to vanish on the boundary.
    """

    def __init__(self, frequency: float = 1.0):
        above(0, frequency=frequency)
        self.frequency = frequency

    def exact(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(self.frequency * math.pi * x).prod(1)

    def residual(self, x: Tensor, u: Tensor, laplacian: Tensor) -> Tensor:  # noqa: D102
        scale = x.shape[1] * (self.frequency * math.pi) ** 2
        return -laplacian - scale * self.exact(x)


def _l2(params: Iterable[Tensor]) -> Tensor:
    return torch.stack([(p * p).sum() for p in params]).sum()


#: Terms of the loss that depend on the parameters alone, by name.
FEATURES: dict[str, Callable[[Iterable[Tensor]], Tensor] | None] = {
    "none": None,
    "l2": _l2,
}


class PINN(Task):
    r"""A network that solves a partial differential equation.

    .. math::
        L = \frac{1}{N + M} \sum_{\text{all points}} \text{residual}^2
            + \frac{c}{M} \sum_{\text{boundary}} (u - u_{\text{exact}})^2
            + w R(\theta)

    A batch is a pair of N interior and M boundary points, both of which enter the
    residual. At the start the exact solution is inserted in the equation as a check.
    Logged are, at every validation, the means of ``|residual|`` (``val/residual``), of
    the error on the boundary (``val/boundary``) and of the distance from the exact
    solution (``val/error``), and the largest ``|residual|`` (``val/max_residual``).

    Args:
        network: Builds the network u, (N, D) to (N, 1); in a config its class_path and
            init_args. Its activations must be smooth.
        equation: Builds it; in a config its class_path and init_args.
        optimizer: See `Task`.
        boundary_weight: c, at least 0.
        feature: R, a further term of the loss: "none", or "l2", the sum of the
            parameters' squares.
        feature_weight: w, at least 0.
        probes: Random directions that estimate the Laplacian in training; 0: exact.
            Worth it in many dimensions.
        probe_seed: Of the random directions.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.

    Note:
        With probes the mean loss is larger than the exact one, by the variance of the
        estimated Laplacian. The reference code inserts the boundary value rounded to
        six digits.
    """

    metric_names = ("val/error", "val/residual", "val/max_residual", "val/boundary")

    def __init__(
        self,
        network: Callable[[], nn.Module],
        equation: Callable[[], Equation],
        optimizer: OptimizerCallable,
        boundary_weight: float = 1e5,
        feature: str = "none",
        feature_weight: float = 2e-4,
        probes: int = 0,
        probe_seed: int = 0,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        one_of(FEATURES, feature=feature)
        at_least(0, boundary_weight=boundary_weight, probes=probes)
        at_least(0, feature_weight=feature_weight)
        self.network, self.equation = network(), equation()
        self.boundary_weight = boundary_weight
        self.feature, self.feature_weight = FEATURES[feature], feature_weight
        self.probes, self.probe_seed = probes, probe_seed
        names = ("residual", "boundary", "error", "loss")
        self.means = Means(
            f"{part}/{name}" for part in ("val", "test") for name in names
        )
        self.largest = MaxMetric()

    def forward(self, x: Tensor) -> Tensor:
        """Return u, (N,), at points (N, D)."""
        return self.network(x).squeeze(1)

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a pair of interior and boundary points."""
        residual, distance, _ = self._deviations(batch)
        return self._loss(residual, distance)

    def _loss(self, residual: Tensor, distance: Tensor) -> Tensor:
        loss = residual.square().mean()
        loss = loss + self.boundary_weight * distance.square().mean()
        if self.feature is not None:
            loss = loss + self.feature_weight * self.feature(self.network.parameters())
        return loss

    def _deviations(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return residuals at all points, distances on the boundary, and u."""
        interior, boundary = batch
        x = torch.cat([interior, boundary])
        directions = None
        if self.probes and self.training:
            step = self.trainer.global_step
            directions = probes(x, self.probes, self.probe_seed, step)
        u, bend, _ = laplacian(self.network, x, directions)
        u, bend = u.squeeze(1), bend.squeeze(1)
        distance = u[len(interior) :] - self.equation.boundary(boundary)
        return self.equation.residual(x, u, bend), distance, u

    def part(self, batch: Any, index: int) -> Any:
        """Return a part of the interior and one of the boundary."""

        def cut(points: Tensor) -> Tensor:
            return points.tensor_split(self.minibatches or 1)[index]

        return tree_map(cut, batch)

    def setup(self, stage: str) -> None:
        """Refuse a network that does not fit the points."""
        data = getattr(self.trainer, "datamodule", None)
        d = getattr(data, "dimensions", None)
        if d is not None:
            what = f"points of {d} dimensions"
            refuse_misfit(self.network, d, what)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Insert the exact solution in the equation, once."""
        if self.trainer.global_step == 0 and batch_idx == 0:
            self.check_exact_solution(torch.cat([*batch])[:1000])

    def check_exact_solution(self, x: Tensor) -> float:
        """Return the largest residual of the exact solution, relative to its Laplacian.

        Args:
            x: Points, (N, D).

        Raises:
            UserError: If the exact solution does not solve the equation.
        """
        x = x.double()
        u, bend, _ = laplacian(lambda y: self.equation.exact(y).unsqueeze(1), x)
        residual = self.equation.residual(x, u.squeeze(1), bend.squeeze(1))
        error = float(residual.abs().max() / bend.abs().max().clamp(min=1))
        if not error < 1e-8:
            raise UserError(
                f"model.equation: the exact solution of {type(self.equation).__name__} "
                f"does not solve its equation: the residual is {error:.1e} of the "
                "Laplacian; mend exact or residual"
            )
        return error

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation means."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test means."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return points and solution, (N, D + 1)."""
        x = torch.cat([*batch])
        return torch.cat([x, self.network(x)], 1)

    def _evaluate(self, batch: Any, stage: str) -> None:
        residual, distance, u = self._deviations(batch)
        error = u - self.equation.exact(torch.cat([*batch]))
        values = {"residual": residual, "boundary": distance, "error": error}
        for name, value in values.items():
            self.means.log(self, f"{stage}/{name}", value.abs(), prog_bar=False)
        loss = self._loss(residual, distance)
        self.means.log(self, f"{stage}/loss", loss, len(residual), prog_bar=False)
        self.largest.update(residual.abs().max())
        self.log(f"{stage}/max_residual", self.largest, on_step=False, on_epoch=True)
