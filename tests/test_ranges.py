"""Search ranges: what lies in them, and how annotations carry them."""

import copy
import dataclasses
import pickle
from typing import Annotated

import pytest

from lightning_ecd.ranges import (
    Choice,
    Integers,
    LogUniform,
    Uniform,
    annotated_ranges,
)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside"),
    [
        (LogUniform(1e-3, 1.0), [1e-3, 0.1, 1.0], [0.0, 9e-4, 1.1, -1.0]),
        (Uniform(-1.0, 1.0), [-1.0, 0.0, 1.0], [-1.1, 2.0]),
        (Integers(2, 5), [2, 3, 5], [1, 6]),
        (Choice(("cube", "isotropic")), ["cube"], ["sphere", None]),
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
