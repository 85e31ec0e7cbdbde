"""Fits that end when their budget is spent."""

import time

import pytest
import pytorch_lightning as pl

from datamodules import Steps
from lightning_ecd.callbacks import Budget
from lightning_ecd.errors import UserError
from lightning_ecd.functions import Ackley
from lightning_ecd.optimizers import REGISTRY
from modules import FunctionTask
from tests.callbacks import linear


class Course(pl.Callback):
    """Keeps evaluations, seconds and steps of every validation."""

    def __init__(self):
        self.rows = []

    def on_validation_end(self, trainer, pl_module):
        found = trainer.callback_metrics
        spent = (float(found[f"budget/{name}"]) for name in ("evaluations", "seconds"))
        self.rows.append((trainer.global_step, *spent))


def fit(budget, name="HeavyBall", *others, folder, **settings):
    course, cls = Course(), REGISTRY[name].cls
    module = FunctionTask(Ackley, lambda params: cls(params, lr=1e-4))
    settings = {"limit_val_batches": 1.0, "steps": -1, **settings}
    trainer = linear.fit(
        [budget, *others, course], module, Steps(10), folder=folder, **settings
    )
    return trainer, module, course.rows


@pytest.mark.parametrize("name, a_step", [("HeavyBall", 1), ("SAM", 2)])
def test_evaluations_end_a_fit_with_a_validation(name, a_step, tmp_path):
    budget = Budget(evaluations=50, every=20)
    _, module, rows = fit(budget, name, folder=tmp_path)
    assert module.evaluations == 50
    assert [row[:2] for row in rows] == [
        (20 // a_step, 20.0),
        (40 // a_step, 40.0),
        (50 // a_step, 50.0),
    ]


def test_no_step_begins_that_would_cost_more(tmp_path):
    _, module, rows = fit(
        Budget(evaluations=50, every=1), "EntropySGD", folder=tmp_path
    )
    assert [evaluations for _, evaluations, _ in rows] == [20.0, 40.0]


def test_a_step_beyond_the_whole_budget_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"evaluations must be at least 20, .*got 19"):
        fit(Budget(evaluations=19), "EntropySGD", folder=tmp_path)


def test_a_module_that_counts_nothing_is_refused():
    with pytest.raises(UserError, match="Budget needs a modules.Task"):
        Budget().on_train_start(None, pl.LightningModule())


class Slow(pl.Callback):
    """Makes steps and validations slow."""

    def __init__(self, step, validation):
        self.step, self.validation = step, validation

    def on_train_batch_start(self, *args):
        time.sleep(self.step)

    def on_validation_batch_start(self, *args):
        time.sleep(self.validation)


def test_seconds_end_a_fit_and_validations_cost_none(tmp_path):
    slow = Slow(0.05, 0.4)
    trainer, _, rows = fit(
        Budget(seconds=0.5, every=4), "HeavyBall", slow, folder=tmp_path
    )
    # ten steps of .05 s at most; with validations counted there would be four
    assert 5 <= trainer.global_step <= 10
    seconds = [row[2] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 4 * 0.05 and seconds[-1] >= 0.5


def test_what_was_spent_travels_in_the_checkpoint(tmp_path):
    first = Budget(evaluations=20)
    trainer, _, _ = fit(first, folder=tmp_path)
    assert first.spent > 0
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second = Budget(evaluations=30)
    _, module, _ = fit(second, folder=tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert module.evaluations == 30
    assert second.spent > first.spent


@pytest.mark.parametrize("name", ["evaluations", "seconds", "every"])
def test_bad_arguments_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        Budget(**{name: 0})
