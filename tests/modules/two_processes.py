"""Fits on two forked processes: ``python -m tests.modules.two_processes FOLDER``.

Both ranks write their final weights to ``FOLDER/<case>-<rank>.pt``. A program of its
own, because a process that other tests have used is not safe to fork.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy

from datamodules import Loader
from lightning_ecd.optimizers import REGISTRY
from tests.modules.toys import Regression, maker, samples, trainer, weights

FLAGS = ("gradient_as_bucket_view", "static_graph", "find_unused_parameters")
#: Case -> optimizer, settings of the Trainer, settings of the strategy.
CASES = {
    **{
        name: (name, {}, {})
        for name, entry in REGISTRY.items()
        if entry.traits.ddp and not getattr(entry.cls, "local_gradients", False)
    },
    **{flag: ("BBI", {}, {flag: True}) for flag in FLAGS},
    "accumulation": ("BBI", {"accumulate_grad_batches": 4}, {}),
}
#: Optimizers whose ranks keep their own gradients.
LOCAL = [
    name
    for name, entry in REGISTRY.items()
    if entry.traits.ddp and getattr(entry.cls, "local_gradients", False)
]


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
        info = getattr(trainer.optimizers[0], "info", {})
        torch.save(
            {"weights": weights(pl_module), "loss": loss, "info": dict(info)}, file
        )


def fit(folder, case, **settings):
    name, own, _ = CASES.get(case, (case, {}, {}))
    task = Regression(maker(name), minibatches=1)
    runner = trainer(
        folder, precision="64-true", log_every_n_steps=1, **own, **settings
    )
    runner.fit(task, datamodule=Data())
    return task, runner


def main(folder):
    flags_of = {case: flags for case, (_, _, flags) in CASES.items()}
    for case, flags in (flags_of | {name: {} for name in LOCAL}).items():
        strategy = DDPStrategy(
            start_method="fork", process_group_backend="gloo", **flags
        )
        reports = Reports(Path(folder) / case)
        fit(folder, case, devices=2, strategy=strategy, callbacks=reports)


if __name__ == "__main__":
    main(sys.argv[1])
