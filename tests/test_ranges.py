"""Search ranges: what lies in them, and how annotations carry them."""

import copy
import dataclasses
import math
import pickle
from typing import Annotated

import pytest

from lightning_ecd.ranges import (
    Choice,
    Decay,
    Integers,
    LogUniform,
    Uniform,
    annotated_ranges,
    read_range,
)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (LogUniform(1e-3, 1.0), [1e-3, 0.1, 1.0], [0.0, 9e-4, 1.1, -1.0]),
        (Uniform(-1.0, 1.0), [-1.0, 0.0, 1.0], [-1.1, 2.0]),
        (Integers(2, 5), [2, 3, 5], [1, 6]),
        (Choice(("cube", "isotropic")), ["cube"], ["sphere", None]),
        (Decay(0.0, 2.0), [1.0, math.exp(-1), math.exp(-2)], [1.01, 0.13, 0.0]),
    ],
)
def test_membership(allowed, inside, outside):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert float("nan") not in allowed


def test_ranges_are_values():
    assert Uniform(0, 1) == Uniform(0, 1) != Uniform(0, 2)
    assert len({Integers(1, 2), Integers(1, 2)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        Uniform(0, 1).low = 3
    allowed = Choice((1, 2))
    assert pickle.loads(pickle.dumps(allowed)) == copy.deepcopy(allowed) == allowed


class Example:
    def __init__(
        self,
        lr: Annotated[float, LogUniform(1e-3, 1.0)],
        steps: Annotated[int, "a note", Integers(1, 9)] = 1,
        seed: int = 0,
        kind: str = "plain",
    ):
        pass


class Child(Example):
    pass


class Own(Example):
    def __init__(self, width: Annotated[float, Uniform(0.0, 1.0)] = 0.5):
        super().__init__(0.1)


def test_ranges_are_read_from_a_constructor():
    found = annotated_ranges(Example)
    assert found == {"lr": LogUniform(1e-3, 1.0), "steps": Integers(1, 9)}


def test_a_constructor_of_its_own_hides_the_parents():
    assert annotated_ranges(Own) == {"width": Uniform(0.0, 1.0)}


def test_an_inherited_constructor_brings_its_ranges():
    assert annotated_ranges(Child) == annotated_ranges(Example)


def test_functions_have_ranges_too():
    def make(scale: Annotated[float, Uniform(1.0, 2.0)] = 1.5, other: int = 1):
        pass

    assert annotated_ranges(make) == {"scale": Uniform(1.0, 2.0)}


# -- in files and flags ------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "meant"),
    [
        ("LogUniform(1e-3, 1)", LogUniform(1e-3, 1)),
        (" Uniform( -1,2.5 ) ", Uniform(-1, 2.5)),
        ("Uniform(high=1, low=0)", Uniform(0, 1)),
        ("Integers(1, 9)", Integers(1, 9)),
        ("Decay(0, 10)", Decay(0, 10)),
        ("Choice('a', 2, None)", Choice(("a", 2, None))),
        ("Choice(values=(1, 2))", Choice((1, 2))),
        ([1, "b", True], Choice((1, "b", True))),
        ((0.1,), Choice((0.1,))),
        (Integers(2, 3), Integers(2, 3)),
    ],
    ids=str,
)
def test_a_range_reads_as_it_stands_in_python(stated, meant):
    assert read_range(stated) == meant
    assert read_range(meant) is meant


@pytest.mark.parametrize("kind", [LogUniform, Uniform, Integers, Decay])
def test_a_range_reads_what_it_prints(kind):
    assert read_range(str(kind(1, 3))) == kind(1, 3)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ("Uniform(1, 1)", "from a lower to a higher number"),
        ("Uniform(2, 1)", "from a lower to a higher number"),
        ("Uniform('a', 'b')", "from a lower to a higher number"),
        ("Uniform(0, 1e999)", "from a lower to a higher number"),
        (Uniform(0.0, math.nan), "from a lower to a higher number"),
        ("LogUniform(0, 1)", "positive ends"),
        ("Integers(1, 2.5)", "whole ends"),
        ("Choice()", "at least one value"),
        ([], "at least one value"),
        ("Uniform(0)", "write LogUniform"),
        ("Uniform(0, 1, 2)", "write LogUniform"),
        ("Uniform(0, 1", "write LogUniform"),
        ("Normal(0, 1)", "write LogUniform"),
        ("1e-3 to 1", "write LogUniform"),
        ("", "write LogUniform"),
        (0.1, "write LogUniform"),
        (None, "write LogUniform"),
        ("Uniform(0, len('ab'))", "write LogUniform"),
        ("ranges.Uniform(0, 1)", "write LogUniform"),
    ],
    ids=str,
)
def test_what_is_no_range_is_refused(stated, reason):
    with pytest.raises(ValueError, match=reason):
        read_range(stated)
