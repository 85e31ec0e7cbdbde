"""Absolute times of a step, by pytest-benchmark: ``pytest -n 0 --benchmark-only``."""

import pytest

from tests.benchmarks import steps


@pytest.mark.parametrize("optimizer", steps.OPTIMIZERS)
@pytest.mark.parametrize("network", ["LeNet 28,938", "LeNet 201,528"])
def test_step(benchmark, optimizer, network):
    benchmark(steps.step_of(optimizer, network))


@pytest.mark.parametrize(
    ("optimizer", "network"), [key for key in steps.BARS if "LeNet" in key[1]]
)
def test_step_costs_no_more_than_sgd_with_a_wide_margin(optimizer, network):
    # a busy machine moves the ratios; the bars themselves are in the printed table
    best = min(steps.ratios(network, rounds=11)[optimizer] for _ in range(3))
    assert best <= 1.5 * steps.BARS[optimizer, network]
