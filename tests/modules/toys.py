"""A small task, its data and a bare Trainer, for tests of the training loop."""

import inspect
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import nn
from torch.nn.functional import mse_loss

from datamodules import Loader
from lightning_ecd.optimizers import REGISTRY, Descent, Traits
from modules import Task

SAMPLES = 58  # 3 batches of 16 and 10 more; 14 batches of 4 and 2 more


def network(dropout=0.0):
    """The same weights at every call, whatever the global generator's state."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)
        )


class Regression(Task):
    """Least squares; remembers the first input of every batch it saw."""

    metric_names = ("val/loss",)

    def __init__(
        self,
        optimizer,
        minibatches=None,
        scheduler=None,
        scheduler_interval="epoch",
        groups=None,
        dropout=0.0,
    ):
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        self.network = network(dropout)
        self.seen = []

    def loss(self, batch):
        x, y = batch
        if self.training:
            self.seen.append(round(x[0, 0].item(), 6))
        return mse_loss(self.network(x).squeeze(-1), y)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))


def maker(name, **settings):
    """What builds a registered optimizer, with steps that suit `Regression`."""
    cls = REGISTRY[name].cls
    accepted = inspect.signature(cls).parameters
    small = {key: 0.01 for key in ("lr", "inner_lr") if key in accepted}
    return partial(cls, **(small | settings))


def samples(n=SAMPLES, dtype=torch.float32):
    """Inputs (n, 5) and targets (n,) that the network can learn."""
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=draws, dtype=torch.float64)
    y = torch.sin(x.sum(1)) + 0.1 * torch.randn(n, generator=draws, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def loader(batch_size=4, dtype=torch.float32, n=SAMPLES, **settings):
    return Loader(samples(n, dtype), batch_size=batch_size, **settings)


def trainer(folder, **settings):
    """A Trainer that writes, logs and prints nothing unless told to."""
    callbacks = settings.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    defaults = {
        "default_root_dir": str(folder),
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
    }
    return pl.Trainer(**(defaults | settings))


def weights(task):
    """All parameters as one vector."""
    return nn.utils.parameters_to_vector(task.parameters()).detach().clone()


class Twice(Descent):
    """Evaluates twice per step, on two mini-batches; moves against the second."""

    traits = Traits("toy", "", "", closure=True, evaluations="2", minibatches="2")

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    def update(self, loss, evaluate):
        evaluate()
        self.x.sub_(self.g, alpha=self.param_groups[0]["lr"])
