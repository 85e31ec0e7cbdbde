"""Learning rates and momenta of every step."""

import numpy as np
import pytest
import torch
from scipy.special import eval_jacobi

from lightning_ecd.theory import Sampled, jacobi, log_spaced, power, sampled, schedule
from tests.reference.sgd_theory import jacobi_rates


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0), (-0.5, -0.5)])
@pytest.mark.parametrize("index_from", [0, 1])
def test_jacobi_rates_follow_the_formulas(a, b, index_from):
    alpha, beta = jacobi(6, 1.7, a, b, index_from)
    for s in range(6):
        n = s + index_from
        if n == 0 and a + b == -1:
            continue  # 0/0 in the formula
        expected = jacobi_rates(n, 1.7, a, b)
        np.testing.assert_allclose([alpha[s], beta[s]], expected, rtol=1e-13)


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (0.5, 2.0), (0.0, 0.0), (-0.5, -0.5)])
def test_without_noise_the_error_is_the_jacobi_polynomial(a, b):
    eigenvalues = torch.tensor([1.0, 0.7, 0.3, 0.01], dtype=torch.float64)
    N, lr, steps = 4, 1.9, 25
    K = N * torch.diag(eigenvalues)
    d = torch.ones(N, dtype=torch.float64)
    rates = schedule(steps, *jacobi(steps, lr, a, b), N)
    state = Sampled.start(d)
    everything = torch.arange(N)[None]
    for n in range(1, steps + 1):
        state, _ = sampled(K, state, rates, lambda s: everything, 1)
        at = 1 - lr * eigenvalues.numpy()
        expected = eval_jacobi(n, a, b, at) / eval_jacobi(n, a, b, 1.0)
        np.testing.assert_allclose(state.d[0], expected, rtol=0, atol=1e-13)


def test_powers_start_at_the_rate():
    np.testing.assert_allclose(power(3, 0.5, 0.7), 0.5 * np.arange(1, 4) ** -0.7)


def test_numbers_sequences_and_functions_become_arrays():
    rates = schedule(3, 0.5, [0.1, 0.2, 0.3, 0.4], lambda s: 2 * s + 1)
    assert rates.alpha.tolist() == [0.5] * 3
    assert rates.beta.tolist() == [0.1, 0.2, 0.3]
    assert rates.batch.tolist() == [1, 3, 5]
    assert rates.steps == 3
    np.testing.assert_allclose(rates.gamma(5), [1, 2 / 12, 0])


@pytest.mark.parametrize(
    "courses, name",
    [
        ((0.1, 1.5, 1), "beta"),
        ((0.1, 0.5, 0), "batch"),
        (([0.1], 0.5, 1), "alpha"),
    ],
)
def test_bad_courses_are_refused(courses, name):
    with pytest.raises(ValueError, match=name):
        schedule(3, *courses)


@pytest.mark.parametrize("name", ["a", "b"])
def test_bad_jacobi_weights_are_refused(name):
    with pytest.raises(ValueError, match=name):
        jacobi(3, 0.1, **{name: -1.0})


@pytest.mark.parametrize("steps, points", [(1, 2), (2, 5), (10, 100), (10_000, 30)])
def test_log_spaced_steps_go_from_the_first_to_the_last(steps, points):
    found = log_spaced(steps, points)
    assert found[0] == 1 and found[-1] == steps
    assert found == sorted(set(found)) and len(found) <= points
    # the nearest steps to the exact powers, so neighbours differ by one ratio
    exact = {round(max(steps, 2) ** (i / (points - 1))) for i in range(points)}
    assert set(found) == {t for t in exact if t <= steps}
