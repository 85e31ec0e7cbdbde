"""Means with their standard errors, tests of differences, corrections for many."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of the means of two samples of unequal variances.

    Attributes:
        difference: Mean of the first sample - mean of the second.
        error: Its standard error.
        df: Degrees of freedom after Welch and Satterthwaite.
        t: difference / error.
        p: Two-sided.
        interval: 95 % confidence interval of the difference.
    """

    difference: float
    error: float
    df: float = math.nan
    t: float = math.nan
    p: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error, std/√n with the sample's std.

    Squares neither vanish nor overflow. Of no value the mean is nan, below two values
    the error; both are nan with a value that is nan.
    """
    n = len(values)
    mean = statistics.mean(values) if n else math.nan
    spread = math.hypot(*(value - mean for value in values)) if n > 1 else math.nan
    return mean, spread / math.sqrt(n * (n - 1) or 1)


def welch(a: Sequence[float], b: Sequence[float]) -> Welch:
    """Test whether two samples have the same mean, not assuming equal variances.

    t = (mean a - mean b) / s with s² = s_a² + s_b² and s_a = std(a)/√n_a, on
    s⁴ / (s_a⁴/(n_a - 1) + s_b⁴/(n_b - 1)) degrees of freedom (Welch, Biometrika 34
    (1947) 28). With fewer than two finite values on a side, or no variance on either,
    there is no test: `df`, `t`, `p` and `interval` are nan.

    Args:
        a: A sample; values that are not finite are left out.
        b: The other, likewise.
    """
    a, b = (list(filter(math.isfinite, sample)) for sample in (a, b))
    (mean_a, error_a), (mean_b, error_b) = mean_and_error(a), mean_and_error(b)
    difference, error = mean_a - mean_b, math.hypot(error_a, error_b)
    if min(len(a), len(b)) < 2 or (min(a) == max(a) and min(b) == max(b)):
        return Welch(difference, error)
    unit = max(map(abs, [*a, *b]))  # t has none, and 1e-200 squared is 0
    scaled = ([value / unit for value in sample] for sample in (a, b))
    with warnings.catch_warnings():  # SciPy's, that values are nearly identical
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_ind(*scaled, equal_var=False)
        low, high = (float(end) * unit for end in test.confidence_interval(0.95))
    df, t, p = map(float, (test.df, test.statistic, test.pvalue))
    return Welch(difference, error, df, t, p, (low, high))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for the number of tests.

    The k-th smallest of m is multiplied by m + 1 - k; none becomes smaller than the one
    before it nor larger than 1 (Holm, Scandinavian Journal of Statistics 6 (1979) 65).

    Args:
        p: P-values; nan: no test was made, it stays nan and does not count.
    """
    corrected, largest = [math.nan] * len(p), 0.0
    order = sorted((i for i, x in enumerate(p) if not math.isnan(x)), key=p.__getitem__)
    for smaller, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - smaller) * p[i]))
        corrected[i] = largest
    return corrected
