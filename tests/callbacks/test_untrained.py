"""Runs that do not learn end early."""

from functools import partial

import pytest
import torch

from datamodules import Digits
from lightning_ecd.callbacks import StopUntrained
from lightning_ecd.errors import UserError
from modules import FC, Classifier
from tests.modules.toys import trainer


def fitted(tmp_path, lr, callback, epochs=4):
    torch.manual_seed(0)
    task = Classifier(partial(FC, 64, 16), partial(torch.optim.SGD, lr=lr))
    settings = {"max_epochs": epochs, "num_sanity_val_steps": 1}
    runner = trainer(tmp_path, callbacks=callback, **settings)
    runner.fit(task, datamodule=Digits(batch_size=250))
    return runner


def test_a_run_that_does_not_learn_ends_after_the_epochs_it_has(tmp_path):
    runner = fitted(tmp_path, 1e-12, StopUntrained(floor=0.5, epochs=2))
    assert runner.callback_metrics["val/accuracy"] < 0.5
    assert runner.current_epoch == 3  # epochs that have ended


def test_a_run_that_learns_goes_on(tmp_path):
    runner = fitted(tmp_path, 0.5, StopUntrained(floor=0.2, epochs=2))
    assert runner.callback_metrics["val/accuracy"] > 0.2
    assert runner.current_epoch == 4


def test_a_metric_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="the metric val/f1; there are .*val/loss"):
        fitted(tmp_path, 0.5, StopUntrained("val/f1", epochs=0), epochs=1)


def test_a_negative_number_of_epochs_is_refused():
    with pytest.raises(ValueError, match="^epochs must be"):
        StopUntrained(epochs=-1)
