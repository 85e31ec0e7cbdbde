"""Costs of random bases, with wide margins for a busy machine."""

import pytest

from tests.benchmarks import bases


def test_fast_bases_cost_a_fraction_of_naive_products():
    measured = [bases.steps(rounds=3) for _ in range(2)]
    for name, share in {**bases.NAIVE_BARS, "in_law": 0.02, "srht": 0.05}.items():
        assert min(t[name] / t[bases.NAIVE] for t in measured) <= 1.5 * share


@pytest.mark.parametrize("name", bases.MEMORY_BARS)
def test_directions_are_not_kept_in_memory(name):
    assert bases.memory(name) <= bases.MEMORY_BARS[name]
