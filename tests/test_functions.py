"""Values, gradients, minima and basins of the synthetic objectives."""

import math
import pickle
from functools import partial

import pytest
import torch

from lightning_ecd.functions import (
    Ackley,
    Function,
    Quadratic,
    Rosenbrock,
    TwoBasins,
    Zakharov,
)
from tests.reference import functions as reference

#: Name -> function, and its transcription for a list of floats.
CASES = {
    "quadratic": (
        Quadratic([1.0, 10.0, 0.5], 0.1),
        partial(reference.quadratic, curvatures=[1.0, 10.0, 0.5], minimum=0.1),
    ),
    "rosenbrock": (Rosenbrock(), reference.rosenbrock),
    "rosenbrock_5": (
        Rosenbrock(5, minimum=0.1),
        partial(reference.rosenbrock, minimum=0.1),
    ),
    "zakharov": (Zakharov(), reference.zakharov),
    "zakharov_1": (Zakharov(1), reference.zakharov),
    "flat": (Ackley(), partial(reference.ackley, b=0.02)),
    "regularized": (
        Ackley("regularized"),
        partial(reference.ackley, b=0.02, c=1e-8),
    ),
    "standard": (Ackley("standard", 3), partial(reference.ackley, b=0.2)),
    "two_basins": (TwoBasins(), reference.two_basins),
}
FUNCTIONS = {name: function for name, (function, _) in CASES.items()}

each_case = pytest.mark.parametrize(("function", "slow"), CASES.values(), ids=CASES)
each = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def points(function, *shape, dtype=torch.float64, seed=0):
    """Random points within the box of a function."""
    low, high = function.box
    draws = torch.Generator().manual_seed(seed)
    uniform = torch.rand(*shape, function.dimension, generator=draws, dtype=dtype)
    return low + (high - low) * uniform


def autograd(function, x):
    """Values, and the gradient by differentiating them."""
    x = x.clone().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), gradient


@each_case
def test_values_are_those_of_the_formula(function, slow):
    x = points(function, 50)
    expected = torch.tensor([slow(row) for row in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(function(x), expected, rtol=1e-13, atol=1e-13)
    value, _ = function.value_and_gradient(x)
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-13)


@each_case
def test_gradients_are_differences_of_the_formula(function, slow):
    x = points(function, 20, seed=1)
    rows = [reference.slope(slow, row) for row in x.tolist()]
    expected = torch.tensor(rows, dtype=torch.float64)
    _, gradient = function.value_and_gradient(x)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@each
def test_closed_gradients_equal_autograd(function):
    x = points(function, 4, 25, seed=2)
    value, gradient = function.value_and_gradient(x)
    value_2, gradient_2 = autograd(function, x)
    assert not gradient.requires_grad
    torch.testing.assert_close(value, value_2, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, gradient_2, rtol=1e-12, atol=1e-12)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_axis_but_the_last_is_a_batch(function, dtype):
    x = points(function, 3, 4, dtype=dtype)
    value, gradient = function.value_and_gradient(x)
    assert value.shape == function(x).shape == (3, 4)
    assert gradient.shape == x.shape
    assert value.dtype == gradient.dtype == function(x).dtype == dtype
    one, slope = function.value_and_gradient(x[1, 2])
    assert one.shape == ()
    torch.testing.assert_close(one, value[1, 2])
    torch.testing.assert_close(slope, gradient[1, 2])


@each
def test_points_as_columns_keep_their_layout(function):
    rows = points(function, 100)
    columns = rows.T.contiguous().T
    value, gradient = function.value_and_gradient(columns)
    value_2, gradient_2 = function.value_and_gradient(rows)
    assert gradient.stride() == columns.stride()
    torch.testing.assert_close(value, value_2, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, gradient_2, rtol=1e-12, atol=1e-12)


@each
def test_points_are_left_alone(function):
    x = points(function, 10)
    before = x.clone()
    function.value_and_gradient(x)
    function(x)
    assert torch.equal(x, before)


@each
def test_nothing_is_lower_than_the_minimum(function):
    minimizers = torch.tensor(function.minimizers, dtype=torch.float64)
    lowest = function(minimizers)
    expected = torch.full_like(lowest, function.minimum)
    torch.testing.assert_close(lowest, expected, rtol=0.0, atol=2e-8)
    near = minimizers[:, None] + 1e-3 * points(function, 1, 200)
    assert (function(near) > lowest.max()).all()
    assert (function(points(function, 1000)) > lowest.max()).all()
    _, gradient = function.value_and_gradient(minimizers)
    assert gradient.abs().max() < 1e-4


@each
def test_distance_is_to_the_nearest_minimizer(function):
    first = torch.tensor(function.minimizer, dtype=torch.float64)
    away = torch.zeros_like(first)
    away[0] = 0.25
    x = torch.stack([first, first + away, first - 2 * away])
    torch.testing.assert_close(
        function.distance(x), torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    )


def test_distance_between_two_basins_is_to_the_nearer_one():
    distances = TwoBasins().distance(torch.tensor([[2.0, 3.0], [-2.0, -5.0]]))
    assert distances.tolist() == [1.0, 3.0]


@each
def test_attributes_fit_the_dimension(function):
    assert len(function.start) == function.dimension
    assert all(len(point) == function.dimension for point in function.minimizers)
    assert function.box[0] < function.box[1]
    again = pickle.loads(pickle.dumps(function))
    x = points(function, 3)
    assert torch.equal(again(x), function(x))


# -- the papers' numbers -----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zakharov_at_the_start_is_exact(dtype):
    start = torch.tensor(Zakharov().start, dtype=dtype)
    value, gradient = Zakharov().value_and_gradient(start)
    assert Zakharov()(start).item() == value.item() == 572680.3125
    # 2 + (s + 2 s³) i at s = 27.5
    expected = [2 + (27.5 + 2 * 27.5**3) * i for i in range(1, 11)]
    assert gradient.tolist() == expected


def test_sgd_on_zakharov_repeats_the_published_digits_in_float32():
    """Best of 2500 steps 1.1592e-4 (BBI paper's notebook), which is that of 1853."""
    function, best = Zakharov(), math.inf
    x = torch.tensor(function.start, requires_grad=True)
    sgd = torch.optim.SGD([x], lr=1.8026609877941198e-6, momentum=0.99722657760598)
    for _ in range(1853):
        sgd.zero_grad()
        loss = function(x)
        loss.backward()
        best = min(best, loss.item())
        sgd.step()
    assert f"{best:.4e}" == "1.1592e-04"


def test_two_basins_at_the_start():
    start = torch.tensor([10.0, -10.0], dtype=torch.float64)
    assert round(TwoBasins()(start).item(), 3) == 44.264


def test_curvatures_of_the_basins_are_those_of_the_hessians():
    function = TwoBasins()
    for point, curvatures in zip(function.minimizers, function.curvatures, strict=True):
        x = torch.tensor(point, dtype=torch.float64)
        exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(function, x))
        ours = torch.tensor(sorted(curvatures), dtype=torch.float64)
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0.0)
    rounded = [[round(h, 4) for h in basin] for basin in function.curvatures]
    assert rounded == [[0.8640, 0.8640], [1.6640, 1.6639]]
    assert round(function.ideal_ratio, 4) == 1.9259


def test_the_minima_of_the_basins_are_equal():
    low_1, low_2 = TwoBasins()(torch.tensor([[-2.0, -2.0], [2.0, 2.0]]).double())
    assert abs(low_1 - low_2) < 2e-8


def test_basins_are_discs_of_one_in_scaled_distance():
    function = TwoBasins()
    radius_1, radius_2 = 0.8640**-0.5, 1.66397**-0.5
    x = torch.tensor(
        [
            [-2.0, -2.0],
            [-2.0 + 0.999 * radius_1, -2.0],
            [-2.0, -2.0 - 1.001 * radius_1],
            [2.0, 2.0],
            [2.0, 2.0 - 0.999 * radius_2],
            [2.0 + 1.001 * radius_2, 2.0],
            [10.0, -10.0],
            [float("nan"), 0.0],
        ]
    )
    assert function.basin(x).tolist() == [1, 1, 0, 2, 2, 0, 0, 0]
    assert function.basin(x[3]).item() == 2


@pytest.mark.parametrize("form", ["flat", "regularized", "standard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_the_kink_is_zero(form, dtype):
    function, kink = Ackley(form), torch.zeros(2, dtype=dtype)
    value, gradient = function.value_and_gradient(kink)
    assert gradient.tolist() == [0.0, 0.0]
    assert autograd(function, kink)[1].tolist() == [0.0, 0.0]
    assert abs(value.item()) < 1e-6


@pytest.mark.parametrize("size", [1e-8, 1e-15, 1e-18, 1e-25, 1e-38])
def test_gradients_beside_the_kink_are_no_steeper_than_the_funnel(size):
    x = torch.tensor([size, 0.0])
    # b 20 / √2 along one axis, and the ripple's 4 π² e x / 2
    bound = 0.02 * 20 / math.sqrt(2) + 60 * size
    for gradient in (Ackley().value_and_gradient(x)[1], autograd(Ackley(), x)[1]):
        assert gradient[1] == 0 and 0 <= gradient[0] <= bound * (1 + 1e-5)


def test_the_forms_of_ackley_differ_as_published():
    x = torch.tensor([3.0, -4.0], dtype=torch.float64)
    flat, regularized = Ackley("flat")(x), Ackley("regularized")(x)
    assert (regularized - flat).item() == pytest.approx(1e-8 * 5.0**8, rel=1e-9)
    assert Ackley("standard")(x) > 5 * flat


# -- use by others -----------------------------------------------------------------


class Cubic(Function):
    """A user's own function, without a closed gradient."""

    dimension = 2
    start = (1.0, 1.0)
    box = (-1.0, 1.0)

    def __call__(self, x):
        return (x**3).sum(-1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_function_without_a_closed_gradient_is_differentiated(mode):
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    with mode():
        value, gradient = Cubic().value_and_gradient(x)
    assert value.tolist() == [9.0, -0.875]
    assert gradient.tolist() == [[3.0, 12.0], [3.0, 0.75]]
    assert Cubic().minimizer is None
    with pytest.raises(ValueError, match="Cubic has no known minimizer"):
        Cubic().distance(x)


def test_constants_first_used_in_validation_serve_training():
    curvatures = [1.25, 3.75]  # no other test has these
    with torch.inference_mode():
        Quadratic(curvatures)(torch.ones(2))
    assert autograd(Quadratic(curvatures), torch.ones(2))[1].tolist() == curvatures


def test_constants_first_used_under_a_transform_serve_outside():
    curvatures, x = [1.5, 4.5], torch.ones(6, 2)
    torch.func.vmap(torch.func.grad(Quadratic(curvatures)))(x)
    assert autograd(Quadratic(curvatures), x)[1][0].tolist() == curvatures


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quadratic([]), "curvatures must be in"),
        (lambda: Quadratic([1.0, 0.0]), "curvatures must be in"),
        (lambda: Quadratic([math.inf]), "curvatures must be in"),
        (lambda: Rosenbrock(1), "dimension must be at least 2, got 1"),
        (lambda: Zakharov(0), "dimension must be at least 1, got 0"),
        (lambda: Ackley("flat", 0), "dimension must be at least 1, got 0"),
        (lambda: Ackley("steep"), "form must be one of flat, regularized, standard"),
    ],
)
def test_bad_arguments_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
