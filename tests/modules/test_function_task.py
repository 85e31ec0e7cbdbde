"""A function as a task: what is logged, remembered, resumed and refused."""

from functools import partial

import pytest
import torch

from datamodules import Steps
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.functions import Ackley, Quadratic, Rosenbrock, TwoBasins, Zakharov
from lightning_ecd.optimizers import BBI, Descent, Traits
from modules import FunctionTask
from tests.modules.toys import trainer

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

bbi = partial(BBI, lr=0.002, extra_energy=1.0, bounce_every=7, fixed_bounces=100)


def fit(folder, task, steps=10, ckpt_path=None, **settings):
    runner = trainer(folder, **({"log_every_n_steps": 1} | settings))
    runner.fit(task, datamodule=Steps(steps), ckpt_path=ckpt_path)
    return runner


def plain_loop(function, optimizer, steps, dtype):
    """Points and values of a loop without Lightning, the last point included."""
    x = torch.tensor(function.start, dtype=dtype, requires_grad=True)
    stepper = optimizer([x])
    points, values = [], []

    def closure():
        stepper.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    for _ in range(steps):
        points.append(x.detach().clone())
        values.append(function(x).item())
        stepper.step(closure)
    return [*points, x.detach().clone()], [*values, function(x).item()]


@pytest.mark.parametrize("make", [Zakharov, Ackley, Rosenbrock, TwoBasins])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)]
)
def test_the_point_moves_as_in_a_plain_loop(make, precision, dtype, tmp_path):
    points, values = plain_loop(make(), bbi, 20, dtype)
    task = FunctionTask(make, bbi)
    runner = fit(tmp_path, task, precision=precision)
    assert task.x.dtype == dtype
    assert torch.equal(task.x, points[-1])
    best = min(range(21), key=values.__getitem__)
    assert task.best.item() == values[best]
    assert torch.equal(task.best_x, points[best])
    metrics = runner.callback_metrics
    # metrics are kept in single precision
    assert metrics["val/loss"].item() == pytest.approx(values[-1], rel=1e-6)
    assert metrics["val/best"].item() == pytest.approx(values[best], rel=1e-6)
    assert metrics["train/best"].item() == pytest.approx(min(values[:-1]), rel=1e-6)
    distance = make().distance(points[-1]).item()
    assert metrics["val/distance"].item() == pytest.approx(distance, rel=1e-6)


def test_double_precision_does_not_round_the_start_to_single(tmp_path):
    task = FunctionTask(Rosenbrock, partial(torch.optim.SGD, lr=1e-12))
    fit(tmp_path, task, 1, max_epochs=1, precision="64-true")
    assert abs(task.x[0].item() + 1.2) < 1e-8


def test_a_point_that_has_moved_is_not_set_back(tmp_path):
    task = FunctionTask(Rosenbrock, bbi)
    fit(tmp_path, task, precision="32-true")
    moved = task.x.detach().double()
    trainer(tmp_path, precision="64-true").validate(task, Steps(1), verbose=False)
    assert torch.equal(task.x.detach(), moved)


def test_a_start_of_ones_own(tmp_path):
    task = FunctionTask(Quadratic, partial(torch.optim.SGD, lr=0.01), [1.0, -1.0])
    fit(tmp_path, task, 1, max_epochs=1)
    # gradients h x = (1, -10)
    torch.testing.assert_close(task.x.detach(), torch.tensor([0.99, -0.9]))


class Wanders(Descent):
    """Evaluates far away, at the minimum, and comes back."""

    traits = Traits("toy", "", "", closure=True, evaluations="2", minibatches="2")

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})

    def update(self, loss, evaluate):
        here = self.x.clone()
        self.x.zero_()
        evaluate()
        self.x.copy_(here)


def test_only_points_of_steps_count_as_best(tmp_path):
    task = FunctionTask(Quadratic, Wanders)
    fit(tmp_path, task)
    assert task.evaluations == 40
    assert task.best.item() == 0.5 * (3.0**2 + 10 * 2.0**2)


class Crash(Exception):
    pass


class CrashAt(torch.optim.SGD):
    """Gives up at the 14th step."""

    def step(self, closure=None):
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 14:
            raise Crash
        return super().step(closure)


def checkpointed(folder, every):
    return {"callbacks": Checkpoints(str(folder), every), "plugins": WholeFiles()}


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_resumed_run_equals_the_uninterrupted_one(precision, tmp_path):
    whole, first, second = (FunctionTask(Ackley, bbi) for _ in range(3))
    fit(tmp_path, whole, precision=precision)
    settings = {"precision": precision, **checkpointed(tmp_path, 3)}
    fit(tmp_path, first, max_steps=14, **settings)
    path = str(tmp_path / "last.ckpt")
    settings = {"precision": precision, **checkpointed(tmp_path, 3)}
    runner = fit(tmp_path, second, ckpt_path=path, **settings)
    assert runner.global_step == 20
    assert not torch.equal(first.x, whole.x)
    assert torch.equal(second.x, whole.x)
    assert torch.equal(second.best, whole.best)
    assert torch.equal(second.best_x, whole.best_x)
    assert second.evaluations == whole.evaluations


def test_a_run_resumed_after_a_crash_equals_the_uninterrupted_one(tmp_path):
    settings = {"lr": 1e-3, "momentum": 0.9}
    crashing = FunctionTask(Rosenbrock, partial(CrashAt, **settings))
    whole, second = (
        FunctionTask(Rosenbrock, partial(torch.optim.SGD, **settings)) for _ in "12"
    )
    fit(tmp_path, whole)
    with pytest.raises(Crash):
        fit(tmp_path, crashing, **checkpointed(tmp_path, 4))
    path = str(tmp_path / "last.ckpt")
    runner = fit(tmp_path, second, ckpt_path=path, **checkpointed(tmp_path, 4))
    assert runner.global_step == 20
    assert torch.equal(second.x, whole.x)
    assert torch.equal(second.best, whole.best)


def test_the_run_ends_in_the_first_basin(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.1)
    task = FunctionTask(TwoBasins, sgd, [-4.0, -3.5], stop_in_basin=True)
    points = []
    x = torch.tensor([-4.0, -3.5], requires_grad=True)
    while not TwoBasins().basin(x.detach()):
        points.append(x)
        (gradient,) = torch.autograd.grad(TwoBasins()(x), x)
        x = (x - 0.1 * gradient).detach().requires_grad_()
    runner = fit(tmp_path, task, 1000)
    assert 1 < runner.global_step == len(points) < 1000
    assert TwoBasins().basin(task.x.detach()) == 1


def test_the_tested_and_the_predicted_point(tmp_path):
    task = FunctionTask(Ackley, bbi)
    runner = fit(tmp_path, task)
    (results,) = runner.test(task, datamodule=Steps(1), verbose=False)
    assert results.keys() == {"test/loss", "test/best", "test/distance"}
    assert results["test/best"] == task.best.item()
    (point,) = runner.predict(task, datamodule=Steps(1))
    assert torch.equal(point, task.best_x[None])


def test_hyperparameters_are_plain():
    task = FunctionTask(Ackley, bbi, start=[1.0, 2.0])
    assert task.hparams["start"] == [1.0, 2.0]
    assert not any(callable(value) for value in task.hparams.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": [1.0]}, "start must have 2 coordinates, got 1"),
        ({"stop_in_basin": True}, "stop_in_basin must be false: Ackley has no basins"),
    ],
)
def test_bad_arguments_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        FunctionTask(Ackley, bbi, **settings)
