"""The mean loss of an epoch: over its samples, and after resuming the same."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from datamodules import Loader
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.optimizers import REGISTRY
from modules import Task
from tests.modules.toys import Regression, loader, trainer


class Slope(Task):
    """Loss: the batch's mean, minus 1 for every step of size 1."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.place = nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        return batch[0].mean() + self.place


@pytest.mark.parametrize(
    ("k", "epochs", "expected"),
    [
        # batches (1, 2), (3, 4), (10) at places 0, -1, -2: losses 1.5, 2.5, 8
        (1, 1, (2 * 1.5 + 2 * 2.5 + 8) / 5),
        # at places -3, -4, -5: losses -1.5, -0.5, 5
        (1, 2, (2 * -1.5 + 2 * -0.5 + 5) / 5),
        # (1, 2, 3, 4) at 0, then (10) at -1
        (2, 1, (4 * 2.5 + 9) / 5),
    ],
    ids=["first", "second", "accumulated"],
)
@pytest.mark.parametrize("every", [0, 1, 2])
def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(
    every, k, epochs, expected, tmp_path
):
    batches = Loader(
        (torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]),), batch_size=2, order="sequential"
    )
    runner = trainer(
        tmp_path,
        max_epochs=epochs,
        accumulate_grad_batches=k,
        log_every_n_steps=every,
    )
    runner.fit(Slope(partial(SGD, lr=1.0)), batches)
    found = runner.callback_metrics["train/epoch_loss"].item()
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "k"), [("BBI", 1), ("SGD", 1), ("SGD", 4)])
def test_the_loss_of_an_epoch_is_the_same_after_resuming_within_it(name, k, tmp_path):
    def fit(checkpoint=None, **settings):
        runner = trainer(
            tmp_path,
            max_epochs=1,
            accumulate_grad_batches=k,
            callbacks=[Checkpoints(str(tmp_path))],
            plugins=WholeFiles(),
            **settings,
        )
        task = Regression(partial(REGISTRY[name].cls, lr=0.01), dropout=0.3)
        runner.fit(task, loader(4), ckpt_path=checkpoint)
        return runner.callback_metrics.get("train/epoch_loss")

    torch.manual_seed(0)
    whole = fit()
    torch.manual_seed(0)
    fit(max_steps=2 if k > 1 else 7)  # of 15 batches: 7 or 8 are left
    resumed = fit(checkpoint=str(tmp_path / "last.ckpt"))
    assert torch.equal(whole, resumed)


def test_a_cut_epoch_has_the_mean_of_what_it_saw(tmp_path):
    """After 2 of 3 batches: losses 1.5 and 2.5."""
    values = (torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]),)
    batches = Loader(values, batch_size=2, order="sequential")
    runner = trainer(tmp_path, max_steps=2)
    runner.fit(Slope(partial(SGD, lr=1.0)), batches)
    assert runner.callback_metrics["train/epoch_loss"].item() == pytest.approx(2.0)
