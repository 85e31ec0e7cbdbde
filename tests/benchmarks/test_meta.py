"""Meta-training beside one problem at a time, with a wide margin."""

import pytest

from tests.benchmarks import meta


@pytest.mark.parametrize("name", ["HNN, quadratics", "LSTM, quadratics"])
def test_many_problems_at_once_are_much_faster(name):
    # a busy machine moves the ratio; the bar itself is in the printed table
    assert meta.speedup(name, rounds=3) >= 0.2 * meta.CASES[name].bar
