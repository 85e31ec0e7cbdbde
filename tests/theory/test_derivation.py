"""The symbolic derivation: the paper's functions, from the recursion of one mode."""

import pytest
import sympy

from lightning_ecd.theory import derivation
from lightning_ecd.theory.derivation import a, b, derive, published, signs, z


@pytest.fixture(scope="module")
def derived():
    return derive()


@pytest.mark.parametrize("name", ["denominator", "noise", "signal"])
def test_the_recursion_implies_the_published_functions(derived, name):
    expected = dict(zip(("denominator", "noise", "signal"), published(), strict=True))
    assert sympy.expand(getattr(derived, name) - expected[name]) == 0


def test_the_slope_is_the_published_polynomial():
    expected = (
        -2 * a**2 * b * z**2
        + 4 * a * b**2 * z**2
        + 4 * a * b * z**2
        + b**4 * z**4
        + 2 * b**3 * z**3
        - 2 * b**3 * z**2
        - 2 * b**2 * z**2
        - 2 * b * z**2
        + 2 * b * z
        + 1
    )
    assert sympy.expand(derivation.slope_numerator() - expected) == 0


def test_denominator_and_slope_are_positive_where_modes_converge():
    found = signs(25)
    assert found.denominator > 0 and found.slope > 0
    assert found.points == 3 * 25**3


def test_beyond_the_modes_limit_the_denominator_changes_sign():
    S, _, _ = published()
    values = {z: 0.999, b: 0.0, a: 2.2, derivation.g: 0}
    assert S.subs(values) < 0


def test_the_script_says_that_all_is_as_published(capsys):
    derivation.main()
    printed = capsys.readouterr().out
    assert printed.count(": as published") == 3 and "NOT" not in printed
