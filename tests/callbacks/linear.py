"""A linear network from zero: SGD on it is what the theory says, to the last digit."""

import pytorch_lightning as pl
from torch import nn

from datamodules import SyntheticPowerLaw
from lightning_ecd.optimizers import HeavyBall
from modules import Regression


def from_zero(inputs):
    """Return a linear network without bias that begins at 0."""
    network = nn.Linear(inputs, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


def task(inputs, lr=0.7, momentum=0.0, optimizer=HeavyBall):
    return Regression(
        lambda: from_zero(inputs), lambda params: optimizer(params, lr, momentum)
    )


def problem(samples, batch_size=3, steps_per_epoch=7, **settings):
    settings |= {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
    return SyntheticPowerLaw(1.5, 0.75, samples, **settings)


def fit(callbacks, task, data, steps=60, folder=None, ckpt_path=None, **settings):
    """Train without a screen and without validation; return the trainer."""
    settings = {"logger": False, "max_epochs": -1, "limit_val_batches": 0, **settings}
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        precision="64-true",
        callbacks=callbacks,
        **({} if folder is None else {"default_root_dir": folder}),
        **settings,
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return trainer
