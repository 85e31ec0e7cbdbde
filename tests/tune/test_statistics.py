"""Standard errors, Welch's test and Holm's correction, worked by hand."""

import math

import pytest

from tune.statistics import holm, mean_and_error, welch

NAN, INF = math.nan, math.inf


def test_mean_and_standard_error():
    # deviations -2, -1, 3: variance 14/2 = 7
    assert mean_and_error((1.0, 2.0, 6.0)) == pytest.approx((3.0, (7 / 3) ** 0.5))
    assert mean_and_error((1.0,)) == pytest.approx((1.0, NAN), nan_ok=True)
    assert all(map(math.isnan, mean_and_error(())))
    assert all(map(math.isnan, mean_and_error((NAN, 1.0))))


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_squares_neither_vanish_nor_overflow_in_a_test(unit):
    big, small = welch((0.0, 2 * unit), (3 * unit, 5 * unit)), welch((0, 2), (3, 5))
    assert (big.t, big.df, big.p) == pytest.approx((small.t, small.df, small.p))
    scaled = tuple(end * unit for end in small.interval)
    assert big.interval == pytest.approx(scaled, rel=1e-12, abs=0)


def test_welch_of_two_degrees_of_freedom_is_elementary():
    # variances 2 and 2: s² = 1 + 1, and df = 4 / (1 + 1); Student's distribution of two
    # degrees of freedom is F(t) = 1/2 + t / (2 √(2 + t²))
    test = welch((0.0, 2.0), (3.0, 5.0))
    t = -3 / 2**0.5
    assert (test.difference, test.df) == pytest.approx((-3.0, 2.0))
    assert (test.error, test.t) == pytest.approx((2**0.5, t))
    assert test.p == pytest.approx(1 - 3 / 13**0.5)  # |t| / √(2 + t²) = 3 / √13
    # F(q) = 0.975: q = 0.95 √(2 / (1 - 0.95²))
    half = 0.95 * (2 / 0.0975) ** 0.5 * 2**0.5
    assert test.interval == pytest.approx((-3 - half, -3 + half))


def test_welch_of_unequal_variances_and_sizes():
    # (1, 2, 6): mean 3, variance 7, s_a² = 7/3; (10, 14): mean 12, variance 8, s_b² = 4
    # s² = 19/3, df = (361/9) / (49/18 + 16) = 722/337
    test = welch((1.0, 2.0, 6.0), (10.0, 14.0))
    assert test.df == pytest.approx(722 / 337)
    assert test.error == pytest.approx((19 / 3) ** 0.5)
    assert test.t == pytest.approx(-9 / (19 / 3) ** 0.5)


def test_welch_of_students_sleep_data():
    # Student, Biometrika 6 (1908) 1; R prints for t.test(extra ~ group, data = sleep):
    # t = -1.8608, df = 17.776, p-value = 0.07939, interval -3.3654832  0.2054832
    first = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
    second = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
    test = welch(first, (*second, NAN))
    assert test.difference == pytest.approx(-1.58)
    assert test.t == pytest.approx(-1.8608, abs=5e-5)
    assert test.df == pytest.approx(17.776, abs=5e-4)
    assert test.p == pytest.approx(0.07939, abs=5e-6)
    assert test.interval == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


def test_one_side_without_variance_leaves_the_degrees_of_freedom_of_the_other():
    # the constant side adds nothing: s² = 7/3, df = 3 - 1
    test = welch((1.0, 2.0, 6.0), (0.1, 0.1, 0.1))
    t = 2.9 / (7 / 3) ** 0.5
    assert (test.t, test.df) == pytest.approx((t, 2.0))
    assert test.p == pytest.approx(1 - t / (2 + t**2) ** 0.5)
    other = welch((0.1, 0.1, 0.1), (1.0, 2.0, 6.0))
    assert (other.t, other.df, other.p) == pytest.approx((-t, 2.0, test.p))


@pytest.mark.parametrize(
    ("a", "b", "difference", "error"),
    [
        ((1.0, NAN), (2.0, 3.0), -1.5, NAN),
        ((2.0, 3.0), (1.0,), 1.5, NAN),
        ((), (1.0, 2.0), NAN, NAN),
        ((NAN, INF), (NAN,), NAN, NAN),
        ((0.1, 0.1, 0.1), (0.3, 0.3), 0.1 - 0.3, 0.0),
        ((0.0, 0.0), (0.0, 0.0), 0.0, 0.0),
    ],
)
def test_where_there_is_no_test_its_numbers_are_nan(a, b, difference, error):
    test = welch(a, b)
    assert test.difference == pytest.approx(difference, nan_ok=True)
    assert test.error == pytest.approx(error, nan_ok=True)
    numbers = (test.df, test.t, test.p, *test.interval)
    assert all(map(math.isnan, numbers))


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        # 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04 raised to the one before it
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.5, 0.9), (1.0, 1.0)),
        ((0.02, NAN, 0.01), (0.02, NAN, 0.02)),
        ((0.04,), (0.04,)),
        ((), ()),
    ],
)
def test_holm(p, corrected):
    assert holm(p) == pytest.approx(list(corrected), nan_ok=True)
