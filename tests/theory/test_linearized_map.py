"""Maps of sampled runs: every cell is a run by itself."""

import math

import pytest
import torch

from lightning_ecd.theory import (
    Sampled,
    from_power_law,
    noise_strength,
    sampled,
    schedule,
    synthetic_kernel,
)
from lightning_ecd.theory.problems import PowerLaws
from lightning_ecd.theory.studies import LossMap
from lightning_ecd.theory.studies.linearized import linearized_map, smoothed

N = 30
ALPHA = torch.tensor([0.0, 0.4, 0.9, 3.9], dtype=torch.float64)
BETA = torch.tensor([-1.0, -0.5, 0.3, 0.8], dtype=torch.float64)


@pytest.fixture(scope="module")
def kernel():
    return synthetic_kernel(from_power_law(1.5, 0.75, N), 0)


def test_whole_batches_leave_no_chance(kernel):
    K, d = kernel
    found = linearized_map(K, d, ALPHA, BETA, N, 150)
    everything = torch.arange(N).expand(1, -1)
    for i, alpha in enumerate(ALPHA.tolist()):
        for j, beta in enumerate(BETA.tolist()):
            if alpha == 0 or beta == -1:
                assert found[i, j] == math.inf
                continue
            rates = schedule(150, alpha, beta, N)
            start = Sampled.start(d)
            _, losses = sampled(K, start, rates, lambda step: everything, 150)
            exact = losses[-1, 0]
            if alpha < 2 * (1 + beta):
                torch.testing.assert_close(found[i, j], exact, rtol=1e-9, atol=0)
            else:
                assert found[i, j] == math.inf and exact > 1e6 * d.square().mean()


def test_cells_have_the_same_mini_batches_and_seeds_others(kernel):
    K, d = kernel
    whole = linearized_map(K, d, ALPHA, BETA, 3, 70)
    one = linearized_map(K, d, ALPHA[1:2], BETA[2:3], 3, 70)
    torch.testing.assert_close(whole[1:2, 2:3], one, rtol=1e-9, atol=0)
    other = linearized_map(K, d, ALPHA[1:2], BETA[2:3], 3, 70, seed=1)
    assert not torch.isclose(one, other, rtol=1e-3)


def test_the_mean_over_seeds_is_that_of_the_diagonal_regime():
    """Up to the few per cent by which random eigenvectors differ."""
    settings = {"batches": [5], "steps": 20, "alpha": (0.5, 0.5, 1)}
    settings["beta"] = (0.2, 0.2, 1)
    problem = PowerLaws(1.5, 0.75, N)
    exact = LossMap(**settings).run(problem, lambda *_: None).arrays["loss_5"]
    runs = [
        LossMap(**settings, regime="linearized", seed=seed)
        .run(problem, lambda *_: None)
        .arrays["loss_5"]
        for seed in range(400)
    ]
    assert noise_strength(5, N) > 0.1  # chance matters
    assert torch.stack(runs).mean().item() == pytest.approx(exact.item(), rel=0.1)


def test_smoothing_leaves_exponentials_and_skips_what_diverged():
    i = torch.arange(40, dtype=torch.float64)
    losses = (0.1 * i[:, None] - 0.05 * i).exp()
    inner = smoothed(losses, 1.0)[6:-6, 6:-6]
    torch.testing.assert_close(inner, losses[6:-6, 6:-6], rtol=1e-3, atol=0)
    losses[20, 20] = torch.inf
    found = smoothed(losses, 1.0)
    assert found[20, 20] == math.inf
    assert found[21, 20].isfinite()
    constant = torch.full((9, 9), 3.0, dtype=torch.float64)
    constant[4, 4] = torch.inf
    kept = smoothed(constant, 2.0)
    assert (kept[constant.isfinite()] - 3).abs().max() < 1e-12


@pytest.mark.parametrize(
    "name, value", [("regime", "other"), ("smooth", -1.0), ("batches", [-1])]
)
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        LossMap(**{name: value})
