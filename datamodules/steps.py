"""Batches of nothing, for what needs no data."""

import pytorch_lightning as pl
import torch

from datamodules.memory import Loader
from lightning_ecd.checks import at_least


class Steps(pl.LightningDataModule):
    """Epochs of a number of steps, for tasks without data such as functions.

    A batch is a tuple of the step's index within the epoch, shape (1,). The loader
    knows its place, so that a resumed epoch has the steps that were left. Every rank
    makes all of them. Validation, test and prediction are one batch.

    Args:
        steps_per_epoch: Optimizer steps in an epoch, at least 1; after each comes a
            validation.
    """

    def __init__(self, steps_per_epoch: int = 100) -> None:
        super().__init__()
        at_least(1, steps_per_epoch=steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.save_hyperparameters()

    def train_dataloader(self) -> Loader:
        """Return the steps of an epoch, in order."""
        return _steps(self.steps_per_epoch)

    def val_dataloader(self) -> Loader:
        """Return one step."""
        return _steps(1)

    def test_dataloader(self) -> Loader:
        """Return one step."""
        return _steps(1)

    def predict_dataloader(self) -> Loader:
        """Return one step."""
        return _steps(1)


def _steps(count: int) -> Loader:
    return Loader((torch.arange(count),), batch_size=1, order="sequential")
