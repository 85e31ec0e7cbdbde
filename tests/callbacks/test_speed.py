"""Batches and samples per second in the logs."""

import csv
from functools import partial

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from lightning_ecd.callbacks import Speed
from tests.modules.toys import Regression, loader, trainer


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`")
def test_rates_are_logged_and_belong_together(tmp_path):
    logger = CSVLogger(str(tmp_path), "a", "b")
    settings = {"logger": logger, "log_every_n_steps": 1, "max_epochs": 3}
    runner = trainer(tmp_path, callbacks=Speed(window_size=4), **settings)
    runner.fit(Regression(partial(torch.optim.SGD, lr=0.1)), loader(16))
    with open(tmp_path / "a" / "b" / "metrics.csv") as file:
        rows = [
            row for row in csv.DictReader(file) if row["train/device/batches_per_sec"]
        ]
    assert rows
    for row in rows:
        batches = float(row["train/device/batches_per_sec"])
        samples = float(row["train/device/samples_per_sec"])
        assert batches > 0
        assert 10 * batches <= samples * 1.0001 <= 16.01 * batches  # the last has ten


def test_a_window_needs_two_batches():
    with pytest.raises(ValueError, match="^window_size must"):
        Speed(1)
