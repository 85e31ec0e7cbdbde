"""The confusion matrix of a test."""

from functools import partial

import pytest
import torch
from torch import nn

from datamodules import Digits
from lightning_ecd.callbacks import Confusion
from lightning_ecd.errors import UserError
from modules import Classifier
from tests.modules.toys import Regression, loader, trainer


class Constant(nn.Module):
    """Takes every image for a three, with more outputs than classes."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(3), 12) * 1.0)

    def forward(self, images):
        return self.bias.expand(len(images), 12)


def test_rows_are_true_and_columns_predicted(tmp_path):
    data, confusion = Digits(), Confusion()
    task = Classifier(Constant, partial(torch.optim.SGD, lr=0.1))
    trainer(tmp_path, callbacks=confusion).test(task, datamodule=data, verbose=False)
    counts = confusion._matrix.compute()
    _, labels = data.test_dataloader().tensors
    expected = torch.zeros(10, 10, dtype=torch.long)
    expected[:, 3] = torch.bincount(labels.long(), minlength=10)
    assert torch.equal(counts, expected)


def test_shares_sum_to_one(tmp_path):
    confusion = Confusion(shares=True)
    task = Classifier(Constant, partial(torch.optim.SGD, lr=0.1))
    trainer(tmp_path, callbacks=confusion).test(
        task, datamodule=Digits(), verbose=False
    )
    torch.testing.assert_close(confusion._matrix.compute().sum(1), torch.ones(10))


def test_a_task_without_classes_is_refused(tmp_path):
    class Tested(Regression):
        def test_step(self, batch, batch_idx):
            self.loss(batch)

    runner = trainer(tmp_path, callbacks=Confusion())
    with pytest.raises(UserError, match="Confusion needs classes"):
        runner.test(Tested(torch.optim.SGD), loader(4), verbose=False)
