"""Descent in random bases against dense algebra, direction by direction."""

import pytest
import torch

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import FPD, NES, RBD, RBDNES, GradientBasis, ZeroOrderRBD
from lightning_ecd.randomness import generator
from tests.cases import PROBLEMS, SHAPES, closure_of, descend, quadratic, start, values
from tests.reference import bases

STEPS, TOLERANCE = 40, 1e-12
#: Sizes of the tensors: 12, 5, 1, 12. Divisions by hand: a pair (d, pieces) each.
ONE = [(6, [(0, 0, 12), (1, 0, 5), (2, 0, 1), (3, 0, 12)])]
#: A layer is a matrix and the vectors behind it.
LAYERS = [(6, [(0, 0, 12), (1, 0, 5), (2, 0, 1)]), (6, [(3, 0, 12)])]
TYPES = [(6, [(0, 0, 12)]), (6, [(1, 0, 5), (2, 0, 1)]), (6, [(3, 0, 12)])]
#: At most 10 each: 12 in two, 5 + 1 together, 12 in two; 6 of 3 parts is 2 each.
SIZES = [
    (2, [(0, 0, 6)]),
    (2, [(0, 6, 12)]),
    (2, [(1, 0, 5), (2, 0, 1)]),
    (2, [(3, 0, 6)]),
    (2, [(3, 6, 12)]),
]
#: max(ceil(n / 1), 10), made even, cut in pieces of at most 8.
LINEAR = [
    (6, [(0, 0, 6)]),
    (6, [(0, 6, 12)]),
    (10, [(1, 0, 5)]),
    (10, [(2, 0, 1)]),
    (6, [(3, 0, 6)]),
    (6, [(3, 6, 12)]),
]
DIVISIONS = {
    "one": (ONE, {}),
    "layers": (LAYERS, {"compartments": "layers", "compartment_size": 1}),
    "type": (TYPES, {"compartments": "type"}),
    "size": (
        SIZES,
        {"compartments": "size", "compartment_size": 10, "split_dimensions": True},
    ),
    "linear": (
        LINEAR,
        {"compartments": "linear", "compartment_size": 8, "dimensions": 1},
    ),
}


def rows_of(division):
    """Return the directions of a division as a function of (redraw, compartment)."""

    def rows(redraw, k):
        d, pieces = division[k]
        n = sum(stop - first for _, first, stop in pieces)
        draws = generator(17, redraw, k)
        return torch.randn(d, n, generator=draws, dtype=torch.float64)

    return rows


def evaluation(xs, loss):
    """Return what the transcriptions call: loss and fresh gradients."""

    def evaluate():
        leaves = [x.detach().clone().requires_grad_() for x in xs]
        value = loss(leaves)
        return value.item(), list(torch.autograd.grad(value, leaves))

    return evaluate


def both(cls, slow_class, division, settings, slow_settings=None, loss="rosenbrock"):
    """Assert that an optimizer and its transcription walk the same way."""
    compartments, options = DIVISIONS[division]
    params = start()
    xs = [p.detach().clone() for p in params]
    rows = rows_of(compartments)
    arguments = {"dimensions": 6, **options, **settings}
    optimizer = cls(params, explicit=rows, **arguments)
    slow = slow_class(xs, compartments, rows, **(slow_settings or settings))
    closure = closure_of(optimizer, params, PROBLEMS[loss])
    for _ in range(STEPS):
        optimizer.step(closure)
        slow.step(evaluation(xs, PROBLEMS[loss]))
        torch.testing.assert_close(
            values(params), values(xs), rtol=TOLERANCE, atol=TOLERANCE
        )


LENGTHS = ["auto", 3.0, "unbiased", "row", "tensor", "mean", "mean_sq"]


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("division", DIVISIONS)
def test_every_length_and_division(division, normalize):
    both(RBD, bases.RBD, division, {"lr": 0.01, "normalize": normalize})


SWITCHES = {
    "norm": {"transformation": "norm"},
    "ranks": {"transformation": "ranks"},
    "top": {"top_fraction": 0.4},
    "bottom": {"top_fraction": -0.4},
    "nothing": {"top_fraction": 0.0},
    "largest": {"top_count": 2},
    "all but the largest": {"top_count": -2},
    "decay": {"weight_decay": 0.05},
    "momentum": {"momentum": 0.7},
    "window": {"redraw_every": 3},
    "for ever": {"redraw_every": 0},
    "displaced": {"redraw_every": 0, "displaced": True, "normalize": 40.0},
    "displaced and redrawn": {
        "redraw_every": 3,
        "displaced": True,
        "normalize": 40.0,
    },
    "surgeon": {"surgeon": 0.3, "momentum": 0.5},
    "multiplier": {"correlation_multiplier": True, "momentum": 0.5},
    "a tensor by SGD": {"sgd_tensor": 2, "sgd_lr": 0.002},
    "all but a tensor by SGD": {"sgd_tensor": -2, "sgd_lr": 0.002},
    "below": {"sgd_below": 0.1, "sgd_lr": 0.002},
    "SGD first": {"sgd_first": 7, "sgd_lr": 0.002},
    "SGD last": {"sgd_from": 9, "sgd_lr": 0.002},
    "several": {
        "transformation": "norm",
        "top_fraction": 0.5,
        "momentum": 0.6,
        "correlation_multiplier": True,
        "redraw_every": 2,
    },
}


@pytest.mark.parametrize("loss", ["rosenbrock", "logistic"])
@pytest.mark.parametrize("division", ["one", "size"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch(switch, division, loss):
    settings = {"lr": 0.01, **SWITCHES[switch]}
    both(RBD, bases.RBD, division, settings, loss=loss)


@pytest.mark.parametrize("displaced", [False, True])
def test_a_fixed_projection(displaced):
    settings = {"lr": 0.01, "displaced": displaced, "normalize": 40.0}
    both(FPD, bases.RBD, "one", settings, {**settings, "redraw_every": 0})


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("transformation", ["ranks", "norm", "none"])
def test_evolution_strategies(transformation, normalize):
    settings = {"lr": 0.01, "std": 0.02, "transformation": transformation}
    settings["normalize"] = normalize
    both(NES, bases.NES, "one", settings, {**settings, "mean": True}, "quadratic")
    slow = {**settings, "mean": False}
    both(RBDNES, bases.NES, "one", settings, slow, "quadratic")


@pytest.mark.parametrize("normalize", LENGTHS)
@pytest.mark.parametrize("oracle", ["central", "forward"])
def test_differences(oracle, normalize):
    """Rounding of the losses is divided by the step: 1e-16/1e-2 per step."""
    settings = {"lr": 0.01, "oracle": oracle, "distance": 1e-2, "normalize": normalize}
    settings["transformation"] = "none"
    both(ZeroOrderRBD, bases.Differences, "one", settings, loss="quadratic")


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("length", "power"), [("norm", 1), ("square", 2)])
def test_the_last_gradients(length, power, offset):
    params = start()
    xs = [p.detach().clone() for p in params]
    fast = GradientBasis(params, 0.02, 3, offset, length)
    slow = bases.GradientBasis(xs, 0.02, 3, offset, power)
    for _ in range(STEPS):
        descend(fast, params, quadratic, 1)
        slow.step(evaluation(xs, quadratic))
        torch.testing.assert_close(
            values(params), values(xs), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_one_last_gradient_by_its_square_makes_steps_of_lr_over_the_norm():
    params = start()
    optimizer = GradientBasis(params, 0.1, 1, length="square")
    before = values(params)
    descend(optimizer, params, quadratic, 1)
    g = torch.cat([p.grad.reshape(-1) for p in params])
    torch.testing.assert_close(values(params), before - 0.1 * g / (g @ g))


def test_the_last_gradients_are_measured_when_that_is_due():
    params, gradients = start(), []
    optimizer = GradientBasis(params, 0.02, 2, diagnostics_every=2)
    for t in range(6):
        descend(optimizer, params, quadratic, 1)
        gradients.append(values([p.grad for p in params]))
        if (t + 1) % 2:
            assert optimizer.info == {}
            continue
        both = torch.stack(gradients[-2:])
        expected = torch.cosine_similarity(both, both[-1:])
        torch.testing.assert_close(optimizer.info["cosines"], expected)
        expected = torch.corrcoef(both)[1]
        torch.testing.assert_close(optimizer.info["correlations"], expected)


# -- windows -----------------------------------------------------------------------


def test_a_continuous_window_visits_the_points_of_a_basis_that_lives_as_long():
    ways = []
    for continuous in (False, True):
        params = start()
        optimizer = RBD(
            params, 0.1, 6, redraw_every=4, continuous=continuous, basis="normal"
        )
        way = []
        for _ in range(12):
            descend(optimizer, params, quadratic, 1)
            way.append(values(params))
        ways.append(torch.stack(way))
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "switches", [{"top_count": 3}, {"momentum": 0.4}, {"surgeon": -0.5}]
)
def test_switches_act_on_a_window_as_a_whole(switches):
    """One window of two steps, by hand."""
    rows = torch.randn(6, 30, generator=generator(3), dtype=torch.float64)
    params = start()
    optimizer = RBD(
        params, 0.1, 6, redraw_every=2, continuous=True, explicit=lambda r, k: rows,
        **switches,
    )  # fmt: skip
    w = values(params)
    h = torch.linspace(0.2, 2.0, 30, dtype=torch.float64)
    phi = rows / 30**0.5

    def gradient(x):
        return h * (x - 0.3)

    first = phi @ gradient(w)
    second = phi @ gradient(w - 0.1 * phi.T @ first)
    c = 0.1 * (first + second)
    if "top_count" in switches:
        keep = torch.zeros(6, dtype=torch.bool)
        keep[c.argsort(descending=True)[:3]] = True
        c = c * keep
    s = phi.T @ c
    if "momentum" in switches:
        s = 0.6 * s
    if "surgeon" in switches:
        place = w - 0.1 * phi.T @ first
        for part in (slice(0, 12), slice(12, 17), slice(17, 18), slice(18, 30)):
            g = gradient(place)[part]
            if g @ s[part] < -0.5 * g.norm() * s[part].norm():
                s[part] = 0
    descend(optimizer, params, quadratic, 2)
    torch.testing.assert_close(values(params), w - s, rtol=1e-12, atol=1e-13)


def test_a_window_needs_one_lr():
    a, b, *_ = start()
    groups = [{"params": [a]}, {"params": [b], "lr": 0.2}]
    optimizer = RBD(groups, 0.1, 6, redraw_every=2, continuous=True)
    with pytest.raises(UserError, match="same lr in all groups"):
        descend(optimizer, [a, b], quadratic, 1)


@pytest.mark.parametrize(("how", "fraction"), [("low", 0.5), ("high", 0.25)])
def test_only_directions_of_low_or_high_coordinates_are_drawn_anew(how, fraction):
    params = start()
    optimizer = RBD(
        params, 0.01, 8, redraw_every=3, redraw=how, redraw_fraction=fraction
    )
    before = optimizer.projectors()[0].raw(0, 8).clone()
    descend(optimizer, params, quadratic, 3)
    size = optimizer.system["coordinates"].abs()
    descend(optimizer, params, quadratic, 1)
    after = optimizer.projectors()[0].raw(0, 8)
    changed = (before != after).any(1)
    order = size.argsort(descending=how == "high")
    assert set(changed.nonzero().flatten().tolist()) == set(
        order[: round(8 * fraction)].tolist()
    )


def test_shapes_are_those_of_the_cases():
    """The divisions by hand above hold for them."""
    assert SHAPES == [(3, 4), (5,), (), (2, 3, 2)]
