"""The search for the lowest point of a function."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_ecd.functions import Function
from modules.task import LRSchedulerFactory, Task


class FunctionTask(Task):
    """Moves one point on a function; the loss is the value there.

    Logged are, on the trainer's logging steps, ``train/loss`` and the lowest value so
    far, ``train/best``; at every validation the present value ``val/loss``, the
    lowest ``val/best`` and the distance to the nearest minimizer ``val/distance``.
    The data may be anything; `datamodules.Steps` counts steps.

    Args:
        function: Builds the function; in a config its class_path and init_args.
        optimizer: See `Task`.
        start: Where the point starts, length n; None: where the function's papers do.
        stop_in_basin: End the run in the first basin that the point enters; for
            functions that have basins.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.

    Attributes:
        x: The point, shape (n,).
        best_x: The best point so far, shape (n,); its value is `best`.
    """

    metric_names = ("val/best", "val/loss", "val/distance")
    best: Tensor
    best_x: Tensor

    def __init__(
        self,
        function: Callable[[], Function],
        optimizer: OptimizerCallable,
        start: list[float] | None = None,
        stop_in_basin: bool = False,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        self.function = function()
        self.start = self.function.start if start is None else tuple(start)
        if len(self.start) != self.function.dimension:
            raise ValueError(
                f"start must have {self.function.dimension} coordinates, "
                f"got {len(self.start)}"
            )
        if stop_in_basin and not hasattr(self.function, "basin"):
            raise ValueError(
                f"stop_in_basin must be false: {type(self.function).__name__} has no "
                "basins"
            )
        self.stop_in_basin = stop_in_basin
        self.x = nn.Parameter(torch.tensor(self.start))
        self.register_buffer("best", torch.tensor(math.inf))
        self.register_buffer("best_x", torch.tensor(self.start))

    def setup(self, stage: str) -> None:
        """Take double precision before a checkpoint is read, and the start exactly."""
        if self.trainer.precision == "64-true":
            exact = torch.tensor(self.start, dtype=torch.float64)
            if torch.equal(self.x.cpu(), exact.float()):
                self.x.data = exact.to(self.x.device)
            self.double()  # Lightning would do so after a checkpoint was rounded

    def forward(self, x: Tensor) -> Tensor:
        """Return the values (...) at points (..., n)."""
        return self.function(x)

    def part(self, batch: Any, index: int) -> Any:
        """Return the batch: a function has no mini-batches."""
        return batch

    def loss(self, batch: Any) -> Tensor:
        """Return the value at the point."""
        value = self.function(self.x)
        if self.training and self._evaluation == 0:  # later ones may be elsewhere
            self._remember(value.detach())
        return value

    def batch_size(self, batch: Any) -> int:  # noqa: D102
        return 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run in a basin."""
        if self.stop_in_basin and self.function.basin(self.x.detach()):  # type: ignore[attr-defined]
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log value, lowest value and distance."""
        self._evaluate("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log value, lowest value and distance."""
        self._evaluate("test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the best point so far, shape (1, n)."""
        return self.best_x.unsqueeze(0)

    def _evaluate(self, stage: str) -> None:
        value = self.function(self.x)
        self._remember(value)
        self.log(f"{stage}/loss", value, batch_size=1)
        self.log(f"{stage}/best", self.best, batch_size=1, prog_bar=True)
        if self.function.minimizers:
            distance = self.function.distance(self.x)
            self.log(f"{stage}/distance", distance, batch_size=1)

    def _remember(self, value: Tensor) -> None:
        better = value < self.best
        self.best.copy_(torch.where(better, value, self.best))
        self.best_x.copy_(torch.where(better, self.x.detach(), self.best_x))

    def _log_step(self, loss: Tensor) -> None:
        super()._log_step(loss)
        self.log("train/best", self.best.clone())
