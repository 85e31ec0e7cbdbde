"""Curvature of the loss while training goes on."""

import math
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.checks import at_least
from lightning_ecd.curvature import Loss, Matrix, batches_of
from lightning_ecd.curvature.inspection import Inspection
from lightning_ecd.errors import UserError


class Curvature(Callback):
    """Logs spectrum, trace and flatness of the loss on a schedule.

    What `lightning-ecd curvature` finds out about a checkpoint, always on the same
    training samples, without augmentation, BatchNorm in evaluation mode. Scalars are
    ``curvature/trace``, ``curvature/top_1``, ``curvature/local_energy_0.1``, ..., and
    their standard errors ``curvature/trace_error``, ...; the figures
    ``curvature/spectrum`` and ``curvature/slices`` lie also in the run's folder.
    Training goes on as if nothing had happened.

    Args:
        every_n_epochs: Epochs from one measurement to the next, at least 1.
        samples: Training samples, at most.
        chunk: Samples whose graph is in memory at once.
        matrix: "hessian", "ggn" (generalized Gauss-Newton) or "fisher" (empirical).
        probes: Random vectors of the density and the trace; 0: neither.
        steps: Of Lanczos for each of them.
        top: Leading eigenvalues; 0: none.
        noise: Relative noise on the weights at which the local energy is measured.
        draws: Of that noise.
        rho: Distance of the sharpness, as in SAM; 0: no sharpness.
        points: Of every slice of the loss; 0: no slices.
        reach: Of the slices on either side, in norms of the filters.
        plane: Points along either side of a slice in two directions; 0: none.
        seed: Of the random vectors.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        samples: int = 512,
        chunk: int = 256,
        matrix: Matrix = "hessian",
        probes: int = 2,
        steps: int = 30,
        top: int = 1,
        noise: tuple[float, ...] = (0.1,),
        draws: int = 5,
        rho: float = 0.05,
        points: int = 0,
        reach: float = 1.0,
        plane: int = 0,
        seed: int = 0,
    ):
        at_least(1, every_n_epochs=every_n_epochs, samples=samples, chunk=chunk)
        self.every_n_epochs, self.samples, self.chunk = every_n_epochs, samples, chunk
        self.plan = Inspection(
            matrix=matrix,
            probes=probes,
            steps=steps,
            products=0,
            top=top,
            noise=noise,
            draws=draws,
            rho=rho,
            points=points,
            reach=reach,
            plane=plane,
            seed=seed,
        )
        self._batches: list[Any] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a task without a loss of a batch, and loaders without a module."""
        if not callable(getattr(pl_module, "loss", None)):
            raise UserError(
                f"trainer.callbacks: Curvature needs a task with a loss(batch), "
                f"{type(pl_module).__name__} has none"
            )
        if stage == "fit" and getattr(trainer, "datamodule", None) is None:
            raise UserError(
                "trainer.callbacks: Curvature needs a data module, of which it draws "
                "its samples: give the Trainer one, or leave the callback out"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure if the epoch's turn has come."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        from lightning_ecd.curvature.figures import drawn  # matplotlib: 1 s

        if not self._batches:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._batches = batches_of(
                data, "train", self.samples, self.chunk, pl_module.device
            )
        found = self.plan.run(Loss(pl_module, self._batches))
        values = {}
        for name, (value, error) in found.numbers.items():
            values[f"curvature/{name}"] = value
            if math.isfinite(error):
                values[f"curvature/{name}_error"] = error
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step)
        for name, figure in drawn(found, self.plan).items():
            publish(figure, trainer, f"{name}.png", f"curvature/{name}")
