"""Fits on two forked processes: ``python -m tests.modules.two_processes FOLDER``.

Both ranks write their final weights to ``FOLDER/<case>-<rank>.pt``. A program of its
own, because a process that other tests have used is not safe to fork.
"""

import sys
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from datamodules import Loader
from lightning_ecd.optimizers import REGISTRY
from tests.modules.toys import Regression, samples, trainer, weights

FLAGS = ("gradient_as_bucket_view", "static_graph", "find_unused_parameters")
#: Case -> optimizer, settings of the Trainer, settings of the strategy.
CASES = {
    **{name: (name, {}, {}) for name, e in REGISTRY.items() if e.traits.ddp},
    **{flag: ("BBI", {}, {flag: True}) for flag in FLAGS},
    "accumulation": ("BBI", {"accumulate_grad_batches": 4}, {}),
}


class Data(pl.LightningDataModule):
    """48 samples, 8 in a batch of all ranks together."""

    def train_dataloader(self):
        world = self.trainer.world_size
        return Loader(
            samples(48, torch.float64),
            batch_size=8 // world,
            rank=self.trainer.global_rank,
            world_size=world,
        )


class Reports(pl.Callback):
    """Writes every rank's weights and the loss that it logged."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        loss = trainer.callback_metrics["train/loss"]
        file = f"{self.path}-{trainer.global_rank}.pt"
        torch.save({"weights": weights(pl_module), "loss": loss}, file)


def fit(folder, case, **settings):
    name, own, _ = CASES[case]
    task = Regression(partial(REGISTRY[name].cls, lr=0.01))
    runner = trainer(
        folder, precision="64-true", log_every_n_steps=1, **own, **settings
    )
    runner.fit(task, datamodule=Data())
    return task, runner


def main(folder):
    for case, (_, _, flags) in CASES.items():
        strategy = DDPStrategy(
            start_method="fork", process_group_backend="gloo", **flags
        )
        reports = Reports(Path(folder) / case)
        fit(folder, case, devices=2, strategy=strategy, callbacks=reports)


if __name__ == "__main__":
    main(sys.argv[1])
