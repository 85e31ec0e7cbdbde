import math
from functools import partial

import pytest
import torch
from torch import nn

from datamodules import Collocation
from lightning_ecd.callbacks import Checkpoints, RadialSlice, WholeFiles
from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.figures import radial_slice
from lightning_ecd.optimizers import BBI, EntropySGD
from modules import MLP, PINN, Poisson, ResidualMLP, SineProduct
from modules.pinn import Equation
from tests.modules.toys import trainer, weights
from tests.reference import poisson

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SGD = partial(torch.optim.SGD, lr=1e-9)


def task(network=None, equation=Poisson, optimizer=SGD, **settings):
    torch.manual_seed(0)
    return PINN(
        network or partial(ResidualMLP, 2, 6, 2), equation, optimizer, **settings
    )


def data(**settings):
    defaults = {"interior": 30, "boundary": 10, "steps_per_epoch": 4, "seed": 3}
    return Collocation(**(defaults | settings))


def doubles(module, **settings):
    inner, outer = data(**settings).points()
    return module.double(), (inner.double(), outer.double())


def reported(runner):
    return {name: float(value) for name, value in runner.callback_metrics.items()}


# -- the equation -------------------------------------------------------------------


def test_the_source_is_the_printed_one():
    x = torch.tensor([[0.3, -0.2], [0.0, 0.9], [0.05, 0.0]], dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)
    found = -Poisson().residual(x, zero, zero)
    wanted = [poisson.source(float(p.norm())) for p in x]
    assert torch.allclose(found, torch.tensor(wanted, dtype=found.dtype), rtol=1e-12)


def test_the_boundary_value_is_the_printed_one():
    _, outer = data().points()
    values = Poisson().boundary(outer.double())
    assert (values - 0.833469).abs().max() < 2e-5  # points of single precision
    assert abs(math.sin(20) ** 2 - 0.833469) < 5e-7


@pytest.mark.parametrize("dimensions", [1, 2, 3, 6])
@pytest.mark.parametrize("equation", [Poisson, partial(Poisson, 3.0), SineProduct])
def test_exact_solutions_solve_their_equations_in_every_dimension(equation, dimensions):
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(9, dimensions, generator=draws, dtype=torch.float64)
    exact = equation()
    u, _, bend = poisson.nested(lambda y: exact.exact(y).unsqueeze(1), x)
    residual = exact.residual(x, u, bend)
    assert residual.abs().max() < 1e-11 * bend.abs().max().clamp(min=1)
    assert task(equation=equation).check_exact_solution(x) < 1e-11


class Wrong(Poisson):
    def exact(self, x):
        return super().exact(x) + 1e-3 * x[:, 0] ** 2


class Line(Equation):
    """u'' = 0 on [-1, 1]: u = x."""

    def exact(self, x):
        return x[:, 0]

    def residual(self, x, u, laplacian):
        return laplacian


def test_an_exact_solution_that_is_none_is_refused_at_the_start(tmp_path):
    class Broken(Poisson):
        def residual(self, x, u, laplacian):
            return super().residual(x, u, laplacian) + 1.0

    with pytest.raises(UserError, match="exact solution of Broken does not solve"):
        trainer(tmp_path, max_steps=1).fit(task(equation=Broken), datamodule=data())


def test_an_equation_without_a_residual_is_none():
    class Half(Equation):
        def exact(self, x):
            return x[:, 0]

    with pytest.raises(TypeError, match="residual"):
        task(equation=Half)


def test_an_equation_of_ones_own(tmp_path):
    module = task(partial(MLP, 1, [4]), Line, partial(torch.optim.Adam, lr=0.05))
    module.boundary_weight = 1.0
    points = data(dimensions=1, steps_per_epoch=200)
    runner = trainer(tmp_path, max_epochs=1)
    runner.fit(module, datamodule=points)
    assert reported(runner)["val/error"] < 0.05


# -- the loss ----------------------------------------------------------------------


@pytest.mark.parametrize("feature", ["none", "l2"])
def test_loss_and_gradient_are_those_of_the_formulas(feature):
    module, batch = doubles(task(feature=feature))
    params = list(module.network.parameters())
    found = module.loss(batch)
    l2 = 2e-4 if feature == "l2" else 0.0
    wanted = poisson.loss(module.network, *batch, l2=l2)
    # the printed boundary value has six digits
    assert torch.allclose(found, wanted, rtol=1e-5)
    grads = torch.autograd.grad(found, params), torch.autograd.grad(wanted, params)
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5 * other.abs().max())


def test_the_exact_solution_has_no_loss():
    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return Poisson(2.0).exact(x).unsqueeze(1) + self.shift

    module, batch = doubles(task(Exact, partial(Poisson, 2.0)))
    assert module.loss(batch) < 1e-20
    module.network.shift.data.fill_(0.5)
    u = Poisson(2.0).exact(torch.cat(batch))
    residual = (u + 0.5) ** 2 - u**2  # the Laplacian does not see the shift
    wanted = residual.square().mean() + 1e5 * 0.25
    assert torch.allclose(module.loss(batch), wanted)


def test_a_second_derivative_of_the_loss():
    module, batch = doubles(task(boundary_weight=10.0))
    params = list(module.network.parameters())
    direction = [torch.ones_like(p) for p in params]

    def curvature(loss):
        grads = torch.autograd.grad(loss, params, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        return torch.autograd.grad(along, params)

    def reference():
        x = torch.cat(batch)
        u, _, bend = poisson.nested(module.network, x)
        distance = u[30:] - Poisson().exact(batch[1])
        residual = Poisson().residual(x, u, bend)
        return residual.square().mean() + 10 * distance.square().mean()

    for one, other in zip(
        curvature(module.loss(batch)), curvature(reference()), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


def test_probes_change_the_loss_of_training_alone(tmp_path):
    network = partial(ResidualMLP, 8, 6, 1)
    exact, rough = task(network), task(network, probes=2)
    points = data(dimensions=8, steps_per_epoch=1)
    values = []
    for module in (exact, rough):
        runner = trainer(tmp_path, max_epochs=1)
        runner.fit(module, datamodule=points)
        values.append(reported(runner))
    first, second = values
    assert first["val/loss"] == pytest.approx(second["val/loss"], rel=1e-4)
    batch = points.points()
    rough.train()
    seen = [float(rough.loss(batch).detach()) for _ in range(2)]
    assert seen[0] == seen[1] != float(exact.loss(batch).detach())


def test_parts_of_a_batch_keep_interior_and_boundary_apart():
    module = task(minibatches=2)
    single = data(batch_size=15, steps_per_epoch=2)
    double = data(batch_size=15, steps_per_epoch=1, minibatches=2)
    (both,) = double.train_dataloader()
    for k, batch in enumerate(single.train_dataloader()):
        found = module.part(both, k)
        assert all(torch.equal(a, b) for a, b in zip(found, batch, strict=True))


# -- runs ----------------------------------------------------------------------------


def test_optimizers_of_several_mini_batches_see_boundary_points_in_each(tmp_path):
    """With a boundary of 15 of 45 points, a cut through their row would leave none."""
    optimizer = partial(EntropySGD, lr=1e-9, inner_steps=3, inner_lr=1e-9)
    module = task(optimizer=optimizer)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(module, datamodule=data(batch_size=15, steps_per_epoch=1, minibatches=3))
    assert runner.global_step == 2
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_metrics_are_means_over_all_points(tmp_path):
    module = task().double()
    runner = trainer(tmp_path, max_epochs=1, precision="64-true")
    points = data(batch_size=9, steps_per_epoch=1)
    runner.fit(module, datamodule=points)
    found = reported(runner)
    inner, outer = points.points()
    x = torch.cat([inner, outer])
    u, _, bend = (part.detach() for part in poisson.nested(module.network, x))
    residual = Poisson().residual(x, u, bend).abs()
    distance = (u[30:] - math.sin(20) ** 2).abs()
    error = (u - Poisson().exact(x)).abs()
    # the metrics are summed in single precision
    assert found["val/residual"] == pytest.approx(float(residual.mean()), rel=1e-5)
    assert found["val/max_residual"] == pytest.approx(float(residual.max()), rel=1e-5)
    assert found["val/boundary"] == pytest.approx(float(distance.mean()), rel=1e-5)
    assert found["val/error"] == pytest.approx(float(error.mean()), rel=1e-5)
    (tested,) = runner.test(module, datamodule=points, verbose=False)
    assert set(tested) == {
        name.replace("val", "test") for name in found if "val" in name
    }


@pytest.mark.parametrize(("batch_size", "passes"), [(None, 4), (10, 4 / 3)])
def test_effective_epochs_are_passes_over_the_points(tmp_path, batch_size, passes):
    runner = trainer(tmp_path, max_epochs=2, log_every_n_steps=1)
    runner.fit(task(), datamodule=data(batch_size=batch_size))  # 4 steps an epoch
    assert reported(runner)["train/effective_epochs"] == pytest.approx(2 * passes)


def test_bbi_solves_a_smooth_problem_and_draws_it(tmp_path):
    optimizer = partial(BBI, lr=0.02, bounce_every=100, fixed_bounces=1, patience=300)
    module = task(
        partial(MLP, 2, [12, 12]),
        partial(Poisson, 1.0),
        optimizer,
        boundary_weight=10.0,
    )
    slices = RadialSlice(epochs=3)
    points = data(interior=60, boundary=20, steps_per_epoch=80)
    runner = trainer(tmp_path, max_epochs=5, callbacks=slices)
    runner.fit(module, datamodule=points)
    assert reported(runner)["val/error"] < 0.1
    assert len(slices._curves["step"]) <= 3
    assert slices._curves["step"][-1] in (320, 400)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    module = task(optimizer=partial(torch.optim.SGD, lr=1e30))
    runner = trainer(tmp_path, log_every_n_steps=1, logger=True)
    with pytest.raises(Diverged, match="SGD has diverged"):
        runner.fit(module, datamodule=data())


def test_a_run_with_probes_and_redrawn_points_resumes_to_the_bit(tmp_path):
    optimizer = partial(BBI, lr=1e-5, bounce_every=3, fixed_bounces=2)

    def fit(stop=None, checkpoint=None):
        module = task(optimizer=optimizer, probes=2)
        files = Checkpoints(str(tmp_path / "files"), 1)
        runner = trainer(
            tmp_path,
            max_epochs=3,
            max_steps=stop or -1,
            callbacks=[files, RadialSlice()],
            plugins=WholeFiles(),
        )
        points = data(batch_size=10, redraw_every=1)
        runner.fit(module, datamodule=points, ckpt_path=checkpoint)
        return weights(module)

    whole = fit()
    fit(stop=6)
    resumed = fit(checkpoint=str(tmp_path / "files" / "last.ckpt"))
    assert torch.equal(whole, resumed)


def test_prediction_returns_points_and_solution(tmp_path):
    module, points = task(), data()
    (rows,) = trainer(tmp_path).predict(module, datamodule=points)
    x = torch.cat(points.test_points())
    assert torch.equal(rows[:, :2], x)
    with torch.no_grad():
        assert torch.equal(rows[:, 2:], module.network(x))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (partial(MLP, 3, [4]), "does not take points of 2 dimensions: set model.net"),
        (partial(MLP, 2, [4], 2), r"the network has outputs of shape \(2,\), not one"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(tmp_path, network, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(task(network), datamodule=data())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature": "l1"}, "feature must be one of none, l2, got 'l1'"),
        ({"boundary_weight": -1.0}, "boundary_weight must be at least 0, got -1.0"),
        ({"feature_weight": math.nan}, "feature_weight must be at least 0, got nan"),
        ({"probes": -1}, "probes must be at least 0, got -1"),
        ({"equation": partial(Poisson, 0.0)}, "frequency must be above 0, got 0.0"),
        ({"equation": partial(SineProduct, -1.0)}, "frequency must be above 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        task(**arguments)


# -- figures ---------------------------------------------------------------------------


def test_the_figure_shows_what_it_is_given():
    radius = [0.0, 0.5, 1.0]
    lines = {"exact": [0.0, 1.0, 2.0], "network": [0.1, 1.1, 2.1]}
    curves = {"step": [10.0, 20.0], "error": [0.1, 0.01], "loss": [1e5, 1e4]}
    plane, course = radial_slice(radius, lines, curves).axes
    assert [line.get_label() for line in plane.lines] == ["exact", "network"]
    assert plane.lines[1].get_ydata().tolist() == lines["network"]
    assert [line.get_label() for line in course.lines] == ["error"]
    assert course.get_yscale() == "log"
    assert len(radial_slice(radius, lines, {}).axes) == 2


def test_a_task_without_an_exact_solution_is_refused(tmp_path):
    from tests.modules.toys import Regression, loader

    runner = trainer(tmp_path, callbacks=RadialSlice())
    with pytest.raises(UserError, match="Regression has none"):
        runner.fit(Regression(SGD), loader())


@pytest.mark.parametrize("name", ["points", "epochs"])
def test_a_slice_needs_two_points(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 2, got 1"):
        RadialSlice(**{name: 1})
