import pytest

from lightning_ecd.ranges import Choice, Integers, LogUniform, Uniform
from tune import domain


@pytest.mark.parametrize(
    "range_",
    [LogUniform(1e-3, 1.0), Uniform(-1.0, 2.0), Integers(2, 3), Choice(("a", "b"))],
)
def test_samples_lie_in_the_range(range_):
    samples = [domain(range_).sample() for _ in range(50)]
    assert all(sample in range_ for sample in samples)
    assert len(set(samples)) > 1


def test_both_ends_of_integers_are_drawn():
    samples = {domain(Integers(2, 3)).sample() for _ in range(50)}
    assert samples == {2, 3}
