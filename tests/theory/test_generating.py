"""Generating functions: formulas, coefficients, inversion, derivatives."""

import numpy as np
import pytest
import torch

from lightning_ecd.theory import (
    MiniBatchSGD,
    Modes,
    from_power_law,
    loss_transform,
    noise_strength,
    schedule,
    series,
    spectral_diagonal,
    talbot_loss,
    total_noise,
    total_signal,
    transforms,
)
from tests.reference import sgd_theory as reference

SETTINGS = [
    (0.5, 0.3, 3, 1.0, 1.0),
    (0.3, -0.4, 1, 1.0, -1.0),
    (0.3, 0.6, 20, 0.7, 0.2),
    (1.5, 0.0, 50, 1.0, 1.0),
]


def losses_of(spectrum, alpha, beta, batch, tau1, tau2, steps):
    _, losses = spectral_diagonal(
        spectrum,
        Modes.start(spectrum),
        schedule(steps, alpha, beta, batch),
        steps,
        tau1,
        tau2,
    )
    return torch.cat([losses.new_tensor([spectrum.loss]), losses])


@pytest.mark.parametrize("alpha, beta, batch, tau1, tau2", SETTINGS)
def test_transforms_are_the_sums_of_the_paper(alpha, beta, batch, tau1, tau2):
    spectrum = from_power_law(1.5, 0.8, 50)
    gamma = noise_strength(batch, 50)
    sgd = MiniBatchSGD(alpha, beta, gamma, tau1, tau2)
    z = torch.tensor([0.3, 0.97, 0.5 + 0.4j, -0.8j], dtype=torch.complex128)
    lams, cs = spectrum.eigenvalues.tolist(), spectrum.coefficients.tolist()
    U, V = transforms(sgd, spectrum, z)
    for i, point in enumerate(z.tolist()):
        expected = reference.U(point, lams, alpha, beta, gamma, tau1, tau2)
        assert abs(U[i].item() - expected) <= 1e-13 * abs(expected)
        expected = reference.V(point, lams, cs, alpha, beta, gamma, tau2)
        assert abs(V[i].item() - expected) <= 1e-13 * abs(expected)


@pytest.mark.parametrize("alpha, beta, batch, tau1, tau2", SETTINGS)
def test_sums_of_all_steps_are_the_limit_at_one(alpha, beta, batch, tau1, tau2):
    spectrum = from_power_law(1.5, 0.8, 50)
    sgd = MiniBatchSGD(alpha, beta, noise_strength(batch, 50), tau1, tau2)
    near = torch.tensor(1 - 1e-9, dtype=torch.float64)
    U, V = transforms(sgd, spectrum, near)
    torch.testing.assert_close(total_noise(sgd, spectrum), U, rtol=1e-5, atol=0)
    torch.testing.assert_close(total_signal(sgd, spectrum), V, rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha, beta, batch, tau1, tau2", SETTINGS)
def test_the_loss_transform_sums_the_losses(alpha, beta, batch, tau1, tau2):
    spectrum = from_power_law(1.5, 0.8, 50)
    sgd = MiniBatchSGD(alpha, beta, noise_strength(batch, 50), tau1, tau2)
    losses = losses_of(spectrum, alpha, beta, batch, tau1, tau2, 3000)
    z = torch.tensor(0.97, dtype=torch.float64)
    expected = (losses * z ** torch.arange(3001)).sum()
    found = loss_transform(sgd, spectrum, z)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def test_the_loss_is_a_convolution_of_the_coefficients():
    spectrum = from_power_law(1.5, 0.8, 30)
    sgd = MiniBatchSGD(0.4, 0.3, noise_strength(2, 30))
    losses = losses_of(spectrum, 0.4, 0.3, 2, 1.0, 1.0, 40)
    U, V = series(sgd, spectrum, 41)
    found = []
    for t in range(41):
        noise = sum(U[t - 1 - s] * found[s] for s in range(t))
        found.append(V[t] / 60 + noise)
    torch.testing.assert_close(torch.stack(found), losses, rtol=1e-13, atol=0)


def test_the_inversion_gives_the_losses_of_the_recursion():
    spectrum = from_power_law(1.5, 1.5, 200)
    t = torch.tensor([100.0, 300, 1000, 4000], dtype=torch.float64)
    for alpha, beta, batch in ((0.5, 0.3, 5), (0.3, -0.3, 1), (0.2, 0.8, 20)):
        losses = losses_of(spectrum, alpha, beta, batch, 1.0, 1.0, 4000)
        sgd = MiniBatchSGD(alpha, beta, noise_strength(batch, 200))
        found = talbot_loss(sgd, spectrum, t)
        torch.testing.assert_close(found, losses[t.long()], rtol=1e-8, atol=0)


def test_settings_and_steps_broadcast():
    spectrum = from_power_law(1.5, 1.5, 100)
    alpha = torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    beta = torch.tensor([-0.2, 0.0, 0.4], dtype=torch.float64)
    together = talbot_loss(MiniBatchSGD(alpha, beta), spectrum, 500.0)
    assert together.shape == (2, 3)
    for i, j in ((0, 0), (1, 2)):
        sgd = MiniBatchSGD(alpha[i, 0].item(), beta[j].item())
        alone = talbot_loss(sgd, spectrum, 500.0)
        torch.testing.assert_close(together[i, j], alone, rtol=1e-13, atol=0)


def test_the_inversion_is_differentiable():
    spectrum = from_power_law(1.5, 1.5, 30)

    def f(alpha, beta):
        return talbot_loss(MiniBatchSGD(alpha, beta, 0.5), spectrum, 200.0).log()

    point = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, tuple(point), eps=1e-6, rtol=1e-4, atol=1e-6)


def test_noise_vanishes_for_the_whole_set_and_is_one_for_single_samples():
    assert noise_strength(1, 1000) == 1
    assert noise_strength(1000, 1000) == 0
    np.testing.assert_allclose(noise_strength(10, 1000), 990 / 9990)


def test_odd_numbers_of_nodes_are_refused():
    with pytest.raises(ValueError, match="nodes"):
        talbot_loss(MiniBatchSGD(0.1), from_power_law(1.5, 1.5, 10), 100.0, nodes=7)
