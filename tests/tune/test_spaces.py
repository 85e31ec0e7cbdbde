"""Spaces: names and ranges of hyper-parameters, and the places in them."""

import math

import numpy as np
import pytest

from lightning_ecd.errors import UserError
from lightning_ecd.ranges import Choice, Decay, Integers, LogUniform, Uniform
from tune import Space

FIVE = {
    "lr": "LogUniform(1e-4, 1)",
    "momentum": "Uniform(-1, 3)",
    "steps": "Integers(1, 4)",
    "bounce": ["cube", "isotropic"],
    "friction": "Decay(0, 2)",
}


def test_ranges_are_read_in_their_order():
    space = Space(FIVE)
    assert space.names == list(space.coordinates) == list(FIVE)
    assert list(space.coordinates.values()) == [
        *(LogUniform(1e-4, 1), Uniform(-1, 3), Integers(1, 4)),
        *(Choice(("cube", "isotropic")), Decay(0, 2)),
    ]


@pytest.mark.parametrize(
    ("quantile", "expected"),
    [
        (0.0, (1e-4, -1.0, 1, "cube", 0.0)),
        (0.25, (1e-3, 0.0, 2, "cube", 0.5)),
        (0.5, (1e-2, 1.0, 3, "isotropic", 1.0)),
        (0.75, (1e-1, 2.0, 4, "isotropic", 1.5)),
    ],
)
def test_points_at_quantiles(quantile, expected):
    point = Space(FIVE).at([quantile] * 5)
    assert list(point) == list(FIVE)
    assert list(point.values()) == [
        pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
        for value in expected
    ]


def test_the_last_quantile_below_one_lies_inside():
    space = Space(FIVE)
    point = space.at([1 - 2**-53] * 5)
    assert point["steps"] == 4 and point["bounce"] == "isotropic"
    values = space.values(point).items()
    assert all(value in space.coordinates[name] for name, value in values)


def test_every_coordinate_needs_a_quantile():
    with pytest.raises(ValueError):
        Space(FIVE).at([0.5] * 4)


def test_a_decay_is_searched_by_its_rate():
    space = Space({"momentum": "Decay(0, 10)"})
    assert space.at([0.3]) == {"momentum": pytest.approx(3.0)}
    assert space.values({"momentum": 3.0}) == {"momentum": math.exp(-3.0)}
    assert space.values({"momentum": 0.0}) == {"momentum": 1.0}


def test_a_list_of_ranges_is_one_hyper_parameter():
    space = Space({"betas": ["Uniform(0.8, 1)", "Decay(0, 4)"], "lr": [0.1]})
    assert space.names == ["betas", "lr"]
    assert list(space.coordinates) == ["betas[0]", "betas[1]", "lr"]
    point = space.at([0.5, 0.5, 0.0])
    assert space.values(point) == {
        "betas": [pytest.approx(0.9), math.exp(-2)],
        "lr": 0.1,
    }


def test_a_list_without_ranges_is_a_choice():
    space = Space({"betas": [[0.9, 0.99], [0.5, 0.9]]})
    assert space.grid() == [{"betas": [0.9, 0.99]}, {"betas": [0.5, 0.9]}]


def test_numbers_of_numpy_become_pythons():
    space = Space({"n": "Integers(1, 9)", "x": "Uniform(0, 1)", "flag": [True, False]})
    point = {"n": np.int64(3), "x": np.float64(0.25), "flag": np.bool_(True)}
    values = space.values(point)
    assert values == {"n": 3, "x": 0.25, "flag": True}
    assert [type(value) for value in values.values()] == [int, float, bool]


# -- grids -------------------------------------------------------------------------


def test_the_last_coordinate_of_a_grid_changes_first():
    space = Space({"a": [1, 2], "b": "Integers(5, 6)", "c": ["x"]})
    assert [tuple(point.values()) for point in space.grid()] == [
        (1, 5, "x"),
        (1, 6, "x"),
        (2, 5, "x"),
        (2, 6, "x"),
    ]


@pytest.mark.parametrize("text", ["Uniform(0, 1)", "LogUniform(1, 2)", "Decay(0, 1)"])
def test_a_grid_over_a_continuum_names_the_hyper_parameter(text):
    with pytest.raises(UserError, match=r"space of lr: a grid needs a list"):
        Space({"a": [1], "lr": text}).grid()


# -- back into the range -----------------------------------------------------------


def test_numbers_outside_are_put_on_the_edge():
    space = Space(FIVE)
    outside = dict(zip(FIVE, (2.0, -1.5, 9, "cube", -0.5), strict=True))
    assert list(space.inside(outside).values()) == [1, -1, 4, "cube", 0]
    below = dict(zip(FIVE, (1e-9, 4.0, 0, "isotropic", 3.0), strict=True))
    assert list(space.inside(below).values()) == [1e-4, 3, 1, "isotropic", 2]
    kept = space.at([0.5] * 5)
    assert space.inside(kept) == kept


# -- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("LogUniform(0, 1)", "positive ends"),
        ("Uniform(2, 1)", "from a lower to a higher"),
        ("Integers(0.5, 2)", "whole ends"),
        ("Uniform(0)", "is no range"),
        ("Gaussian(0, 1)", "is no range"),
        (0.1, "is no range"),
        ([], "at least one value"),
        (["Uniform(0, 1)", 0.999], "is no range"),
    ],
)
def test_a_bad_range_names_its_hyper_parameter(value, reason):
    with pytest.raises(UserError, match=f"space of model.optimizer.lr: .*{reason}"):
        Space({"model.optimizer.lr": value})
