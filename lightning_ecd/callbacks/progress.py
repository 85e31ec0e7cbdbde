"""A rich progress bar that does not slow small steps down."""

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar


class ThriftyProgressBar(RichProgressBar):
    """Lightning's rich bar, brought up to date a few times a second at most.

    Args:
        per_second: The most updates per second; Lightning makes one per batch.
    """

    def __init__(self, per_second: int = 10):
        super().__init__(refresh_rate=per_second)
        self._shown = 0.0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the bar if it is time, and always on the last batch."""
        now = time.monotonic()
        if now - self._shown >= 1 / self.refresh_rate or trainer.is_last_batch:
            self._shown = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
