"""The cartoon of local entropy against the published picture, and by direct sums."""

import math

import numpy as np
import pytest

from lightning_ecd.scoping import (
    MARKS,
    Scoping,
    landscape,
    negative_local_entropy,
)


def minima(values):
    inner = values[1:-1]
    return 1 + np.flatnonzero((inner < values[:-2]) & (inner < values[2:]))


def test_wide_valley_wins_over_the_deeper_sharp_one():
    f = landscape()
    assert abs(int(f.argmin()) - 812) <= 1
    values = Scoping().curves[1e-3]
    assert values.argmin() == 341 == MARKS["robust"]
    assert 812 in minima(values)
    assert 200 < Scoping().curves[5e-5].argmin() < 400


def test_marks_lie_where_the_published_picture_has_them():
    """The original's marks were set by hand: (576.73, .938), ..."""
    values = Scoping().curves[1e-3]
    heights = [values[MARKS[name]] for name in ("candidate", "robust", "non-robust")]
    assert heights == pytest.approx([0.938, 0.005, 0.228], abs=0.025)


def test_landscape_is_the_smoothed_noise_at_a_point():
    draws = np.random.RandomState(42)
    f = [-10 * u for u in draws.random_sample(1000)]
    raised = draws.random_sample(1000)
    for i in range(1000):
        f[i] = -80 if 200 <= i < 400 else -200 if 800 <= i < 820 else f[i]
        f[i] += 100 if raised[i] < 0.1 else 0
    window = [math.exp(-0.5 * ((k - 49.5) / 10) ** 2) for k in range(100)]
    for at in (205, 606, 811):
        smooth = 5e-4 * sum(w * f[at + 49 - k] for k, w in enumerate(window))
        assert landscape()[at] == pytest.approx(smooth)


def test_local_entropy_of_a_parabola():
    """-F of f = h x²/2 is h γ/(h + γ) x²/2 and a constant."""
    x = np.arange(2001) - 1000
    values = negative_local_entropy(0.5 * 1e-3 * x**2, 3e-3)[800:1201]
    expected = 0.5 * (3e-6 / 4e-3) * x[800:1201] ** 2
    constant = -0.5 * math.log(2 * math.pi / 4e-3)
    np.testing.assert_allclose(values, expected + constant, atol=1e-9)


def test_bad_scopes_are_named():
    with pytest.raises(ValueError, match="gammas must be above 0, got 0"):
        Scoping((0.0,))
    with pytest.raises(ValueError, match="gammas must hold at least one"):
        Scoping(())
