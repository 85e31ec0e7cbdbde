"""The landscape along random directions, in pictures."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError


class LossesAlong(Callback):
    """Draws the losses that `ZeroOrderRBD` measures along its random directions.

    ``landscape.png`` in the run's folder, ``optimizer/landscape`` in TensorBoard: a
    line for every direction, from the first step on and then every so many. To keep
    the numbers, see `Histories`.

    Args:
        every_n_steps: Steps from one picture to the next, >= 1.
    """

    def __init__(self, every_n_steps: int = 1000):
        at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps, self._last = every_n_steps, 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Draw if the step's turn has come."""
        step = trainer.global_step
        if step == self._last or (step - 1) % self.every_n_steps:
            return
        self._last = step
        optimizer: Any = trainer.optimizers[0]
        table = getattr(optimizer, "info", {}).get("landscape")
        if not isinstance(table, Tensor):
            raise UserError(
                "trainer.callbacks: LossesAlong draws what ZeroOrderRBD measures with "
                f"the oracle central or forward, {type(optimizer).__name__} has no "
                "such table: leave the callback out"
            )
        if not trainer.is_global_zero:
            return
        from lightning_ecd.bases.figures import losses_along  # matplotlib costs 1 s

        distance = optimizer.param_groups[0]["distance"]
        figure = losses_along(table, distance, f"step {step}")
        publish(figure, trainer, "landscape.png", "optimizer/landscape")
