"""The pictures of a point's way on a function."""

from functools import partial

import pytest
import torch
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import Steps
from lightning_ecd.callbacks import Checkpoints, Surface, TensorBoard, WholeFiles
from lightning_ecd.errors import UserError
from lightning_ecd.functions import Ackley, Rosenbrock, Zakharov
from modules import FunctionTask
from tests.modules.toys import Regression, loader, trainer

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

sgd = partial(torch.optim.SGD, lr=1e-3)


def fit(folder, task, surface, steps=10, ckpt_path=None, **settings):
    runner = trainer(folder, **({"callbacks": [surface]} | settings))
    runner.fit(task, datamodule=Steps(steps), ckpt_path=ckpt_path)
    return runner


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take a second each: count instead of drawing them."""
    drawn = []

    def draw(self, trainer, task):
        drawn.append(trainer.global_step)

    monkeypatch.setattr(Surface, "_draw", draw)
    return drawn


def way(folder, function, steps, **settings):
    """Steps and points kept of a run."""
    callback = Surface(**settings)
    fit(folder, FunctionTask(function, sgd), callback, steps, max_epochs=1)
    state = callback.state_dict()
    return state["steps"], state["way"]


def test_every_point_is_kept_start_and_end_included(tmp_path, undrawn):
    steps, points = way(tmp_path, Rosenbrock, 10)
    assert steps == list(range(11))
    x = torch.tensor([-1.2, 1.0], requires_grad=True)
    for point in points:
        torch.testing.assert_close(point.float(), x.detach())
        (gradient,) = torch.autograd.grad(Rosenbrock()(x), x)
        x = (x - 1e-3 * gradient).detach().requires_grad_()


def test_a_long_way_is_thinned_out_evenly(tmp_path, undrawn):
    steps, points = way(tmp_path, Zakharov, 43, points=8)
    assert steps == [0, 8, 16, 24, 32, 40, 43]
    assert points.shape == (7, 10)


def test_a_resumed_run_keeps_the_way_of_the_whole(tmp_path, undrawn):
    def parts():
        callback, files = Surface(points=8), Checkpoints(str(tmp_path), 0)
        settings = {"callbacks": [callback, files], "plugins": WholeFiles()}
        return FunctionTask(Ackley, sgd), callback, settings

    task, whole, settings = parts()
    fit(tmp_path, task, whole, **settings)
    task, first, settings = parts()
    fit(tmp_path, task, first, max_steps=13, **settings)
    task, second, settings = parts()
    fit(tmp_path, task, second, ckpt_path=str(tmp_path / "last.ckpt"), **settings)
    assert second.state_dict()["steps"] == whole.state_dict()["steps"]
    assert torch.equal(second.state_dict()["way"], whole.state_dict()["way"])


@pytest.mark.parametrize(("patience", "drawn"), [(1e9, [30]), (0.0, [10, 20, 30, 30])])
def test_epochs_are_drawn_when_pictures_are_cheap(patience, drawn, tmp_path, undrawn):
    surface = Surface()
    surface._cost = patience
    fit(tmp_path, FunctionTask(Rosenbrock, sgd), surface, max_epochs=3)
    assert undrawn == drawn


@pytest.mark.parametrize(
    ("function", "kinds"),
    [(Rosenbrock, {"curves", "surface"}), (Zakharov, {"curves"})],
)
def test_pictures_are_in_the_run_folder_and_in_tensorboard(function, kinds, tmp_path):
    logger = TensorBoard(str(tmp_path), "name", "version")
    small = FunctionTask(function, partial(torch.optim.SGD, lr=1e-9))
    fit(tmp_path, small, Surface(), max_epochs=1, logger=logger)
    run = tmp_path / "name" / "version"
    assert {path.stem for path in run.glob("*.png")} == kinds
    images = EventAccumulator(str(run)).Reload().Tags()["images"]
    assert set(images) == {f"function/{kind}" for kind in kinds}
    for kind in kinds:
        height, width, _ = imread(run / f"{kind}.png").shape
        assert 300 < height < width < 1300


def test_a_fast_dev_run_draws_nothing(tmp_path):
    fit(tmp_path, FunctionTask(Rosenbrock, sgd), Surface(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_a_task_without_a_function_is_refused(tmp_path):
    runner = trainer(tmp_path, callbacks=[Surface()])
    with pytest.raises(UserError, match="Surface draws functions, Regression has none"):
        runner.fit(Regression(sgd), loader(4))


def test_points_must_be_two_or_more():
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        Surface(points=1)
