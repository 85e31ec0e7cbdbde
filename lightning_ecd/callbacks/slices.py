"""The solution of a differential equation beside the exact one, in pictures."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError


class RadialSlice(Callback):
    """Draws the network on a radius beside the exact solution, and the residuals.

    The radius goes from the origin along the first axis. Drawn as ``solution.png`` in
    the run's folder and in TensorBoard as ``pde/solution``, at the end of the training
    and of the epochs 1, 2, 4, 8, ...

    Args:
        points: Of the slice, at least 2.
        epochs: The most epochs that the curves keep; more are thinned out.
    """

    def __init__(self, points: int = 400, epochs: int = 1000):
        at_least(2, points=points, epochs=epochs)
        self.points, self.epochs = points, epochs
        self._curves: dict[str, list[float]] = {}
        self._validations, self._every = 0, 1
        self._dimensions: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a task without an exact solution."""
        if not hasattr(getattr(pl_module, "equation", None), "exact"):
            raise UserError(
                "trainer.callbacks: RadialSlice draws solutions of equations, "
                f"{type(pl_module).__name__} has none: leave the callback out, or use "
                "modules.PINN"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Learn how many coordinates a point has."""
        self._dimensions = batch[0].shape[1]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics; draw after the epochs 1, 2, 4, 8, ..."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._remember(trainer)
        done = trainer.current_epoch + 1
        if done & (done - 1) == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final solution."""
        self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far."""
        counts = {"validations": self._validations, "every": self._every}
        return {"curves": self._curves} | counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves so far."""
        self._curves = state_dict["curves"]
        self._validations = state_dict["validations"]
        self._every = state_dict["every"]

    def _remember(self, trainer: Trainer) -> None:
        self._validations += 1
        if self._validations % self._every:
            return
        values = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        for name, value in (values | {"step": float(trainer.global_step)}).items():
            self._curves.setdefault(name, []).append(value)
        if len(self._curves["step"]) > self.epochs:  # keep every other one from now on
            self._curves = {name: v[1::2] for name, v in self._curves.items()}
            self._every *= 2

    def _draw(self, trainer: Trainer, pl_module: Any) -> None:
        quick = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._dimensions is None or quick or not trainer.is_global_zero:
            return
        from lightning_ecd.figures import radial_slice  # matplotlib costs a second

        like = next(pl_module.network.parameters())
        x = like.new_zeros(self.points, self._dimensions)
        x[:, 0] = torch.linspace(0, 1, self.points)
        with torch.no_grad():
            lines = {"exact": pl_module.equation.exact(x), "network": pl_module(x)}
        figure = radial_slice(
            x[:, 0].tolist(),
            {name: line.tolist() for name, line in lines.items()},
            self._curves,
        )
        publish(figure, trainer, "solution.png", "pde/solution")
