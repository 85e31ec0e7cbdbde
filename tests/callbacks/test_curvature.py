"""Curvature during a fit: what is logged, and that training does not notice."""

import csv
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ecd.callbacks import Curvature, MetricsFile, TensorBoard
from lightning_ecd.errors import UserError
from tests.modules.toys import Regression, loader, samples, trainer

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
LITTLE = {"samples": 20, "chunk": 8, "probes": 2, "steps": 5, "draws": 2}


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader(order="shuffled")


def fit(folder, *callbacks, task=None, **settings):
    task = task or Regression(sgd, dropout=0.2)
    runner = trainer(folder, callbacks=[*callbacks], **settings)
    torch.manual_seed(0)
    runner.fit(task, datamodule=Data())
    return task


def weights(task):
    return torch.cat([p.detach().reshape(-1) for p in task.parameters()])


def test_training_goes_on_as_if_nothing_had_happened(tmp_path):
    plain = fit(tmp_path)
    watched = fit(tmp_path, Curvature(points=3, plane=2, **LITTLE))
    assert torch.equal(weights(watched), weights(plain))
    assert watched.seen == plain.seen


def test_scalars_and_figures_are_logged_on_schedule(tmp_path):
    place = (str(tmp_path), "run", "version_0")
    loggers = [TensorBoard(*place), MetricsFile(*place)]
    callback = Curvature(every_n_epochs=2, points=3, top=2, **LITTLE)
    task = fit(tmp_path, callback, logger=loggers, max_epochs=3)
    folder = tmp_path / "run" / "version_0"
    with open(folder / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("curvature/trace")]
    assert len(rows) == 1  # after the second of three epochs
    assert float(rows[0]["curvature/trace_error"]) > 0
    assert float(rows[0]["curvature/top_1"]) >= float(rows[0]["curvature/top_2"])
    board = EventAccumulator(str(folder), {"images": 0}).Reload()
    wanted = {"curvature/spectrum", "curvature/slices"}
    assert wanted <= set(board.Tags()["images"])
    assert (folder / "spectrum.png").is_file() and (folder / "slices.png").is_file()
    assert task.training


def test_loss_is_that_of_the_first_samples_in_evaluation_mode(tmp_path):
    place = (str(tmp_path), "run", "version_0")
    callback = Curvature(**LITTLE)
    logger = MetricsFile(*place)
    task = fit(tmp_path, callback, logger=logger, max_epochs=1)
    with open(tmp_path / "run" / "version_0" / "metrics.csv") as file:
        (row,) = [r for r in csv.DictReader(file) if r.get("curvature/loss")]
    x, y = samples()
    first = loader(order="shuffled").epoch_order()[:20]
    task.eval()
    expected = task.loss((x[first], y[first])).item()
    assert float(row["curvature/loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_task_without_loss_or_data_module_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a task with a loss"):
        Curvature().setup(trainer(tmp_path), pl.LightningModule(), "fit")
    with pytest.raises(UserError, match="needs a data module"):
        trainer(tmp_path, callbacks=[Curvature()]).fit(Regression(sgd), loader())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"probes": -1}, "probes must be at least 0, got -1"),
        ({"noise": (0.1, 0.0)}, "noise must be above 0, got 0"),
        ({"matrix": "hesse"}, "matrix must be hessian, ggn or fisher"),
    ],
)
def test_bad_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Curvature(**settings)
