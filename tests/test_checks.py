"""Arguments out of range are refused by name."""

import math
import re

import pytest

from lightning_ecd.checks import above, at_least, one_of, within


def test_what_is_allowed_passes():
    at_least(1, a=1, b=math.inf, c=None)
    above(0, a=1e-300, b=math.inf, c=None)
    within("[0, 1)", a=0, b=None, c=(0.5, 0.999))
    within("(0, inf]", a=1e-300, b=math.inf)
    one_of((0, "a", None), a=0, b="a", c=None)
    one_of({"a": 1}, a="a")


@pytest.mark.parametrize("value", [0, 0.999, -1, -math.inf, math.nan])
def test_at_least_names_the_first_that_is_not(value):
    with pytest.raises(ValueError, match=f"^b must be at least 1, got {value}$"):
        at_least(1, a=1, b=value, c=-5)


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_above_names_the_first_that_is_not(value):
    with pytest.raises(ValueError, match=f"^b must be above 0, got {value}$"):
        above(0, a=1, b=value, c=-5)


@pytest.mark.parametrize(
    ("interval", "value"),
    [
        *[("[0, 1)", value) for value in (-0.1, 1, math.inf, math.nan)],
        *[("(0, inf)", value) for value in (0, math.inf)],
        *[("(-1, 1]", value) for value in (-1, 1.1)],
        ("[0, 1)", (0.5, 1.0)),
    ],
)
def test_within_names_the_first_that_is_not(interval, value):
    sentence = f"b must lie in {interval}, got {value}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        within(interval, a=0.5, b=value, c=-5)


def test_one_of_lists_what_is_allowed():
    with pytest.raises(ValueError, match="^b must be one of x, y, got 'z'$"):
        one_of(("x", "y"), a="x", b="z")
