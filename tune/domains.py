"""Search ranges of the registry as Ray Tune domains."""

from typing import Any

from ray import tune

from lightning_ecd.ranges import Choice, Decay, Integers, LogUniform, Range, Uniform


def domain(range_: Range) -> Any:
    """Return the Ray domain of a range.

    Args:
        range_: What stands beside a hyper-parameter.

    Returns:
        A domain that Ray's searchers sample; for `Decay` that of the rate.
    """
    match range_:
        case LogUniform(low, high):
            return tune.loguniform(low, high)
        case Uniform(low, high) | Decay(low, high):
            return tune.uniform(low, high)
        case Integers(low, high):
            return tune.randint(low, high + 1)  # Ray leaves the upper end out
        case Choice(values):
            return tune.choice(list(values))
    raise TypeError(f"not a range: {range_!r}")
