"""Many optimizers on the same problems: what is measured, written and drawn."""

import csv
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from datamodules import ImageStreams, Quadratics
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import BBI, RBD, REGISTRY, HeavyBall
from lightning_ecd.unrolling import FlatProblem
from lightning_ecd.unrolling.figures import learning_curves
from modules import MLP, Classification, Evaluation, Quadratic
from modules.curves import summary
from modules.evaluation import Swarm
from tests.cases import CASES
from tests.modules.toys import trainer
from tests.unrolling.test_truncated import Bowl, windows

ADAM = partial(torch.optim.Adam, lr=0.1)
ROWS = sorted(name for name, entry in REGISTRY.items() if entry.traits.rows)
DATA = {"steps": 9, "window": 4, "val_runs": 5, "test_runs": 7, "eval_runs": 3}


def alone(make, problem, batches, run):
    """Return the losses of one run, an optimizer of its own on tensors of its own."""
    params = {key: nn.Parameter(p) for key, p in problem.initial(run).items()}
    optimizer, losses = make(list(params.values())), []
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = problem.loss(params, batch)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("name", ROWS)
def test_every_run_is_that_of_an_optimizer_of_its_own(name):
    settings = next(iter(CASES[name].good.values()))
    make = partial(REGISTRY[name].cls, **settings)
    (window,), batches = windows(3, 6, 6)
    problem = FlatProblem(Bowl())
    starts = problem.starts(window.seed[0], torch.zeros(1).double())
    swarm = Swarm(make, problem, starts)
    rows = torch.stack([swarm.step(window.batch_of(t)) for t in range(6)])
    # Runs draw other numbers together than alone: until the first draw they agree.
    steps = 2 if REGISTRY[name].traits.draws_noise else 6
    for run in range(3):
        expected = alone(make, Bowl(), batches[:steps, run], run)
        assert rows[:steps, run].tolist() == pytest.approx(expected, rel=1e-9)


def test_two_optimizers_of_one_name_are_refused():
    with pytest.raises(ValueError, match="others must not have.*'Adam'"):
        Evaluation(partial(Quadratic, 4), ADAM, {"Adam": ADAM})


def test_an_optimizer_that_mixes_rows_is_refused():
    problem = FlatProblem(Quadratic(4))
    with pytest.raises(UserError, match="RBD mixes the rows"):
        Swarm(partial(RBD, lr=1.0), problem, torch.zeros(2, 4))


@pytest.fixture
def tested(tmp_path):
    """A finished test of three optimizers, and its folder."""
    others = {
        "NAG": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
        "heavy": partial(HeavyBall, lr=0.01),
    }
    module = Evaluation(partial(Quadratic, 4), ADAM, others, title="here")
    runner = trainer(tmp_path)
    runner.test(module, Quadratics(dimensions=4, **DATA), verbose=False)
    return tmp_path, runner.callback_metrics


def test_arrays_and_tables_hold_every_run(tested):
    folder, metrics = tested
    arrays = np.load(folder / "losses.npz")
    assert arrays["losses"].shape == (7, 9, 3)
    assert list(arrays["optimizers"]) == ["Adam", "NAG", "heavy"]
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    for number, row in enumerate(rows):
        final = arrays["losses"][:, -1, number]
        assert float(row["final"]) == pytest.approx(final.mean())
        assert float(row["final_error"]) == pytest.approx(final.std(ddof=1) / 7**0.5)
        assert float(row["final_50"]) == pytest.approx(np.median(final))
        assert float(row["loss"]) == pytest.approx(arrays["losses"][..., number].mean())
        name = arrays["optimizers"][number]
        assert metrics[f"test/final/{name}"].item() == pytest.approx(final.mean())
        error = metrics[f"test/final_error/{name}"].item()
        assert error == pytest.approx(final.std(ddof=1) / 7**0.5)
    assert metrics["test/final"].item() == pytest.approx(float(rows[0]["final"]))
    assert (folder / "losses.png").stat().st_size > 5000


def test_all_optimizers_meet_the_same_problems_and_starts(tested):
    first = np.load(tested[0] / "losses.npz")["losses"][:, 0]
    assert (first == first[:, :1]).all() and len(np.unique(first)) == 7


def test_curves_are_scalars_of_every_step(tested):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tested[0]))
    events.Reload()
    losses = np.load(tested[0] / "losses.npz")["losses"]
    for number, name in enumerate(("Adam", "NAG", "heavy")):
        points = events.Scalars(f"curves/{name}")
        assert [p.step for p in points] == list(range(9))
        expected = losses[..., number].mean(0)
        assert [p.value for p in points] == pytest.approx(list(expected), rel=1e-6)


def test_a_fit_validates_the_first_optimizer_and_moves_nothing(tmp_path):
    values = []
    for make in (ADAM, partial(torch.optim.Adam, lr=0.3), ADAM):
        module = Evaluation(partial(Quadratic, 4), make)
        runner = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
        runner.fit(module, datamodule=Quadratics(dimensions=4, **DATA))
        values.append(runner.callback_metrics["val/loss"].item())
    assert values[0] == values[2] != values[1]
    assert module.anchor.item() == 0


def test_networks_for_images_are_evaluated(tmp_path):
    network = partial(MLP, 64, [8], 10, "relu")
    module = Evaluation(partial(Classification, network), ADAM, {"BBI": BBI})
    data = ImageStreams("Digits", batch_size=32, **DATA)
    runner = trainer(tmp_path)
    runner.test(module, data, verbose=False)
    losses = np.load(tmp_path / "losses.npz")["losses"]
    assert losses.shape == (7, 9, 2) and np.isfinite(losses).all()
    assert abs(losses[:, 0].mean() - math.log(10)) < 0.2
    assert losses[:, -1, 0].mean() < losses[:, 0, 0].mean() - 0.3


def test_summary_of_a_hand_worked_table():
    table = torch.tensor([[1.0, 2.0, 1.0, 4.0], [0.5, 3.0, float("nan"), 41.0]])
    found = summary(table)
    assert (found["diverged"], found["worse"]) == (2, 3)
    assert math.isnan(found["final"])
    assert summary(table[:, :2])["final"] == 1.75
    assert summary(table[:, :2])["final_error"] == pytest.approx(1.25)
    assert summary(table[:, :2])["loss"] == 1.625
    assert summary(table[:, :2])["final_10"] == 0.5


def test_the_figure_shows_means_bands_and_medians():
    tables = {"a": torch.rand(5, 9) + 1, "b": torch.rand(5, 9)}
    (axes,) = learning_curves(tables, "here").axes
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels[0] == "a" and axes.get_yscale() == "log"
    mean = axes.get_lines()[0].get_ydata()
    assert np.allclose(mean, tables["a"].mean(1).numpy())
    median = axes.get_lines()[1].get_ydata()
    assert np.allclose(median, tables["a"].median(1).values.numpy())
    assert len(axes.collections) == 2 and axes.get_title() == "here"
