"""The accuracy in training: over all answers of an epoch, also after resuming."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from datamodules import Loader
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.optimizers import EntropySGD
from modules import Classifier
from tests.modules.toys import trainer

IMAGES = torch.arange(10.0)[:, None] - 4.5  # five below zero, five above
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0])


class Sign(nn.Module):
    """Says class 1 where the sign of the shifted pixel is positive."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        shifted = images[:, 0] + self.shift
        return torch.stack([-shifted, shifted], dim=1)


def fit(folder, optimizer, batch_size=3, checkpoint=None, **settings):
    runner = trainer(
        folder,
        callbacks=[Checkpoints(str(folder))],
        plugins=WholeFiles(),
        **({"max_epochs": 1} | settings),
    )
    task = Classifier(Sign, optimizer, train_accuracy=True)
    batches = Loader((IMAGES, LABELS), batch_size=batch_size, order="sequential")
    runner.fit(task, batches, ckpt_path=checkpoint)
    return runner.callback_metrics.get("train/accuracy")


@pytest.mark.parametrize("k", [1, 2])
def test_all_answers_of_an_epoch_count_alike(k, tmp_path):
    """Images 4 (label 1), 8 and 9 (label 0) are answered wrong."""
    found = fit(tmp_path, partial(SGD, lr=0.0), accumulate_grad_batches=k)
    assert found.item() == pytest.approx(0.7)


def test_each_epoch_is_counted_anew(tmp_path):
    """The loss falls with the shift; a long step makes all answers 0, six right."""
    still = fit(tmp_path, partial(SGD, lr=0.0), max_epochs=3)
    assert still.item() == pytest.approx(0.7)
    moved = fit(tmp_path, partial(SGD, lr=1e4), max_epochs=2, batch_size=10)
    assert moved.item() == pytest.approx(0.6)


def test_evaluations_of_a_step_count_too(tmp_path):
    """Two evaluations per step; the first ones alone see 4 right of 5."""
    optimizer = partial(EntropySGD, lr=1e-9, inner_steps=2, inner_lr=1e-9, noise=0.0)
    assert fit(tmp_path, optimizer, batch_size=8).item() == pytest.approx(0.7)


def test_resuming_within_an_epoch_goes_on_counting(tmp_path):
    fit(tmp_path, partial(SGD, lr=0.0), max_steps=2)
    found = fit(tmp_path, partial(SGD, lr=0.0), checkpoint=str(tmp_path / "last.ckpt"))
    assert found.item() == pytest.approx(0.7)


def test_it_is_not_logged_unless_asked(tmp_path):
    runner = trainer(tmp_path, max_epochs=1)
    batches = Loader((IMAGES, LABELS), batch_size=5, order="sequential")
    runner.fit(Classifier(Sign, partial(SGD, lr=0.0)), batches)
    assert "train/accuracy" not in runner.callback_metrics
