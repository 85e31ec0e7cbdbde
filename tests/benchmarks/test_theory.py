"""The theory's fast paths, with a wide margin."""

import pytest

from tests.benchmarks import theory


@pytest.mark.parametrize("name", ["tangent kernel, LeNet-5", "linearised step"])
def test_fast_paths_are_faster(name):
    # a busy machine moves the ratio; the bar itself is in the printed table
    assert theory.speedup(name, rounds=5) >= 0.2 * theory.BARS[name]
