"""Predictions of a run: exact problems come out as predicted."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules import Digits
from lightning_ecd.callbacks import Forecast
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import HeavyBall
from lightning_ecd.theory import (
    MiniBatchSGD,
    alpha_crit,
    from_power_law,
    noise_strength,
)
from modules import Classifier, LeNet
from tests.callbacks import linear

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

N = 40


class Recorder(pl.loggers.logger.DummyLogger):
    """Keeps what is logged."""

    def __init__(self, folder=None):
        super().__init__()
        self.seen, self.folder = {}, folder

    @property
    def log_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.seen.setdefault(name, {})[step] = value


def fit(callback, batch=N, lr=0.5, momentum=0.3, seed=0, **settings):
    recorder = Recorder(settings.get("folder"))
    task = linear.task(N, lr, momentum)
    data = linear.problem(N, batch_size=batch, steps_per_epoch=50, seed=seed)
    trainer = linear.fit(
        [callback], task, data, **{"steps": 100, "logger": recorder, **settings}
    )
    return recorder.seen, trainer


@pytest.mark.parametrize("matrix_free", [False, True])
def test_without_noise_the_losses_are_as_predicted(matrix_free, tmp_path):
    callback = Forecast(matrix_free=matrix_free)
    seen, _ = fit(callback, folder=tmp_path)
    measured, predicted = (seen[f"forecast/{n}"] for n in ("measured", "predicted"))
    assert list(measured) == list(predicted) and len(measured) > 15
    for step, loss in measured.items():
        assert predicted[step] == pytest.approx(loss, rel=1e-4)
    assert callback.measured[0][0] == 0


def test_the_critical_rate_is_that_of_the_spectrum(tmp_path):
    seen, _ = fit(Forecast(), batch=4, lr=0.2, momentum=0.5, folder=tmp_path, steps=2)
    sgd = MiniBatchSGD(1.0, 0.5, noise_strength(4, N))
    expected = alpha_crit(sgd, from_power_law(1.5, 0.75, N)).item()
    assert seen["forecast/critical_lr"][0] == pytest.approx(expected, rel=0.02)
    assert 0 < seen["forecast/noise"][0] < 1


def test_mean_losses_of_runs_are_as_predicted(tmp_path):
    tables = []
    for seed in range(60):
        seen, _ = fit(Forecast(points=8), 8, 0.4, 0.0, seed, folder=tmp_path, steps=30)
        tables.append(list(seen["forecast/measured"].values()))
        predicted = list(seen["forecast/predicted"].values())
    runs = torch.tensor(tables)
    # the diagonal regime is not exact on random eigenvectors: some per cent
    ratio = runs.mean(0) / torch.tensor(predicted)
    assert (ratio - 1).abs().max() < 0.12


def test_later_estimates_begin_where_the_run_is(tmp_path):
    callback = Forecast(every_n_steps=25)
    seen, _ = fit(callback, momentum=0.0, folder=tmp_path)
    starts = [steps[0] for steps, _ in callback.predicted]
    assert starts == [0, 25, 50, 75]
    assert sorted(seen["forecast/critical_lr"]) == starts
    for step, loss in seen["forecast/measured"].items():
        assert seen["forecast/predicted"][step] == pytest.approx(loss, rel=1e-4)
    assert (tmp_path / "forecast.png").stat().st_size > 5000


def test_curves_travel_in_the_checkpoint(tmp_path):
    first = Forecast()
    _, trainer = fit(first, folder=tmp_path, steps=100)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second = Forecast()
    fit(second, folder=tmp_path, steps=101, ckpt_path=tmp_path / "end.ckpt")
    assert second.predicted == first.predicted
    assert second.measured[0][: len(first.measured[0])] == first.measured[0]


def test_it_may_join_a_run_that_is_resumed(tmp_path):
    _, trainer = fit(pl.Callback(), momentum=0.0, folder=tmp_path, steps=10)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    callback = Forecast()
    settings = {"folder": tmp_path, "ckpt_path": tmp_path / "middle.ckpt"}
    seen, _ = fit(callback, momentum=0.0, steps=40, **settings)
    assert [steps[0] for steps, _ in callback.predicted] == [10]
    assert callback.measured[0][0] == 10 and callback.measured[0][-1] == 40
    for step, loss in seen["forecast/measured"].items():  # nothing is random here
        assert seen["forecast/predicted"][step] == pytest.approx(loss, rel=1e-4)


def test_other_tasks_and_optimizers_are_refused(tmp_path):
    task = Classifier(lambda: LeNet(8), lambda p: HeavyBall(p, 0.1))
    with pytest.raises(UserError, match="modules.Regression"):
        linear.fit([Forecast()], task, Digits(), steps=1, folder=tmp_path)


@pytest.mark.parametrize("name", ["samples", "top", "steps", "probes", "points"])
def test_bad_arguments_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        Forecast(**{name: 0})
    with pytest.raises(ValueError, match="every_n_steps"):
        Forecast(every_n_steps=-1)
