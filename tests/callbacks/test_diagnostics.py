"""What an optimizer reports about itself reaches the logs, once."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_ecd.callbacks import Diagnostics
from lightning_ecd.callbacks.hparams import TensorBoard, flattened
from lightning_ecd.figures import phase_space
from lightning_ecd.optimizers import BBI, RBD
from modules import Task
from tests.modules.toys import Regression, loader, trainer


def rows_of(folder):
    """The rows of metrics.csv as dictionaries, empty cells left out."""
    head, *lines = (folder / "a" / "b" / "metrics.csv").read_text().splitlines()
    return [
        {k: v for k, v in zip(head.split(","), line.split(","), strict=True) if v}
        for line in lines
    ]


def logged_fit(folder, task, *callbacks, batch_size=4, **settings):
    logger = CSVLogger(str(folder), "a", "b")
    runner = trainer(
        folder,
        logger=logger,
        log_every_n_steps=4,
        max_epochs=1,
        callbacks=list(callbacks),
        **settings,
    )
    runner.fit(task, loader(batch_size, torch.float64))
    return [row for row in rows_of(folder) if "train/loss" in row]


class Remembers(Regression):
    def loss(self, batch):
        loss = super().loss(batch)
        self.losses = [*getattr(self, "losses", []), loss.item()]
        return loss


bbi = partial(BBI, lr=0.05, extra_energy=1.0)


def test_the_logged_loss_is_that_of_the_logged_step(tmp_path):
    task = Remembers(bbi)
    rows = logged_fit(tmp_path, task, precision="64-true")
    assert [int(row["step"]) for row in rows] == [3, 7, 11]
    for row in rows:
        step = int(row["step"])
        assert float(row["train/loss"]) == pytest.approx(task.losses[step])
        assert float(row["train/evaluations"]) == step + 1


def test_the_potential_is_that_of_the_logged_step(tmp_path):
    task, diagnostics = Remembers(bbi), Diagnostics()
    rows = logged_fit(tmp_path, task, diagnostics, precision="64-true")
    for row in rows:  # f_min is 0: the potential is the loss
        expected = pytest.approx(task.losses[int(row["step"])], rel=1e-6)
        assert float(row["optimizer/V"]) == expected
        # Conserved is what it starts with: the first loss and the extra energy.
        total = float(row["optimizer/energy"]) / (1 + float(row["optimizer/violation"]))
        assert total == pytest.approx(task.losses[0] + 1.0, rel=1e-5)
    assert diagnostics.state_dict()["path"]["step"] == [4.0, 8.0, 12.0]


def test_points_are_kept_once_under_accumulation(tmp_path):
    diagnostics = Diagnostics()
    runner = trainer(
        tmp_path,
        callbacks=[diagnostics],
        accumulate_grad_batches=3,
        log_every_n_steps=1,
        max_epochs=1,
    )
    runner.fit(Regression(bbi), loader(4))
    assert diagnostics.state_dict()["path"]["step"] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_the_figure_keeps_few_points_of_the_whole_run(tmp_path):
    diagnostics = Diagnostics(points=5)
    runner = trainer(tmp_path, callbacks=[diagnostics], log_every_n_steps=1)
    runner.fit(Regression(bbi), loader(4))
    steps = diagnostics.state_dict()["path"]["step"]
    assert len(steps) <= 5
    assert steps[-1] - steps[0] > 15  # of 30
    assert len({b - a for a, b in zip(steps, steps[1:], strict=False)}) == 1


def test_nothing_is_logged_when_logging_is_off(tmp_path):
    diagnostics = Diagnostics()
    runner = trainer(tmp_path, callbacks=[diagnostics], log_every_n_steps=0)
    runner.fit(Regression(bbi), loader(4))
    assert runner.global_step == 30
    assert diagnostics.state_dict()["path"]["step"] == []


def test_an_optimizer_without_information_is_left_alone(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.01)
    rows = logged_fit(tmp_path, Regression(sgd), Diagnostics(), precision="64-true")
    assert all(not name.startswith("optimizer/") for row in rows for name in row)


def test_points_must_be_two_or_more():
    with pytest.raises(ValueError, match="points"):
        Diagnostics(points=1)


def test_the_figure_leaves_out_what_a_logarithm_cannot_show():
    figure = phase_space([1, 2, 3], [1.0, -1.0, 0.5], [0.1, 0.2, 0.3])
    plane, course = figure.axes[:2]
    assert plane.collections[0].get_offsets().tolist() == [[1.0, 0.1], [0.5, 0.3]]
    assert course.lines[0].get_xdata().tolist() == [1, 3]


def test_settings_are_flattened_to_short_names():
    nested = {
        "optimizer": {"class_path": "a.b.BBI", "init_args": {"lr": 0.2, "seed": None}},
        "groups": {"*.bias": {"lr": 1.0}},
        "_class_path": "x",
        "data": {"class_path": "c.Digits"},
        "list": [1, 2],
        "flag": True,
    }
    assert flattened(nested) == {
        "optimizer": "BBI",
        "optimizer/lr": 0.2,
        "optimizer/seed": "None",
        "groups/*.bias/lr": 1.0,
        "data": "Digits",
        "list": "[1, 2]",
        "flag": True,
    }


def test_metric_names_reach_the_logger(tmp_path):
    from lightning_ecd.callbacks import TensorBoard

    class Named(Task):
        metric_names = ("a/b",)

    logger = TensorBoard(str(tmp_path), "name", "version")
    Diagnostics().setup(SimpleNamespace(loggers=[logger]), Named(bbi), "fit")
    assert logger.metric_names == ("a/b",)


def test_vectors_become_histograms_and_the_layout_is_told(tmp_path, caplog):
    logger = TensorBoard(str(tmp_path), "a", "b")
    runner = trainer(
        tmp_path,
        logger=logger,
        log_every_n_steps=2,
        max_steps=4,
        callbacks=[Diagnostics()],
    )
    optimizer = partial(RBD, lr=0.1, dimensions=6, diagnostics_every=4)
    with caplog.at_level("INFO"):
        runner.fit(Regression(optimizer), loader(4))
    logger.finalize("success")
    assert "6 coordinates for 57 parameters: 1 for 9.5" in caplog.text
    events = EventAccumulator(str(tmp_path / "a" / "b"), {"histograms": 0})
    events.Reload()
    assert set(events.Tags()["histograms"]) >= {
        "optimizer/coordinates",
        "optimizer/cosines",
    }
    (record,) = events.Histograms("optimizer/coordinates")
    assert record.step == 4 and record.histogram_value.num == 6
    assert "optimizer/layout/text_summary" in events.Tags()["tensors"]
