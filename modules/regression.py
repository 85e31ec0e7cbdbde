"""Least squares with any network."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_ecd.errors import UserError
from modules.means import Means
from modules.refusals import output_shape
from modules.task import LRSchedulerFactory, Task


class Regression(Task):
    r"""The loss :math:`\frac12 \langle (f(x) - y)^2 \rangle` of any network.

    Metrics: ``val/loss``; ``val/rmse``, the root of the mean squared error in the
    target's own units; where the targets are numbers of classes ``val/accuracy``, the
    share of outputs that are nearest to their own.

    Args:
        network: Builds the network; in a config its class_path and init_args. It has
            one output.
        optimizer: See `Task`.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.
    """

    #: What callbacks and studies about least squares ask for.
    least_squares = True

    metric_names = (
        "val/loss",
        "val/rmse",
        "val/accuracy",
        "test/loss",
        "test/rmse",
        "test/accuracy",
    )

    def __init__(
        self,
        network: Callable[[], nn.Module],
        optimizer: OptimizerCallable,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        self.network = network()
        self.means = Means(self.metric_names)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of every input, (B,)."""
        f = self.network(x)
        if f.dim() == 2 and f.shape[1] == 1:
            return f[:, 0]
        if f.dim() != 1:
            raise UserError(
                f"the network has outputs of shape {tuple(f.shape[1:])}, not one "
                "number: set model.network.outputs to 1"
            )
        return f

    def loss(self, batch: Any) -> Tensor:
        """Return half the mean squared error of (x, y)."""
        x, y = batch
        return (self(x) - y).square().mean() / 2

    def setup(self, stage: str) -> None:
        """Refuse a network that does not fit the samples."""
        data = getattr(self.trainer, "datamodule", None)
        shape = getattr(data, "shape", None)
        if shape is not None:
            output_shape(self, shape, f"{type(data).__name__}'s samples of {shape}")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation means."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test means."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the outputs in the target's own units, (B,)."""
        mean, std = self._moments()
        return self(batch[0]) * std + mean

    def on_validation_epoch_end(self) -> None:
        """Log the root of the mean squared error."""
        self._log_rmse("val")

    def on_test_epoch_end(self) -> None:
        """Log the root of the mean squared error."""
        self._log_rmse("test")

    def _evaluate(self, batch: Any, stage: str) -> None:
        x, y = batch
        f = self(x)
        mean, std = self._moments()
        values = {"loss": (f - y).square().mean() / 2}
        square = 2 * values["loss"] * std**2
        self.means.of(f"{stage}/rmse").update(square, weight=len(y))
        data = getattr(self.trainer, "datamodule", None)
        if getattr(data, "targets", "") == "numbers":
            right = (f * std + mean).round() == (y * std + mean).round()
            values["accuracy"] = right.float().mean()
        for name, value in values.items():
            self.means.log(self, f"{stage}/{name}", value, len(y))

    def _log_rmse(self, stage: str) -> None:
        metric = self.means.of(f"{stage}/rmse")
        self.log(f"{stage}/rmse", metric.compute().sqrt())
        metric.reset()

    def _moments(self) -> tuple[float, float]:
        """Return mean and standard deviation of the target."""
        data = getattr(self.trainer, "datamodule", None)
        return getattr(data, "target_moments", (0.0, 1.0))
