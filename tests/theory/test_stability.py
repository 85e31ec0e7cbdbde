"""Convergence, critical rates, late losses, divergence."""

import math

import pytest
import torch

from lightning_ecd.theory import (
    MiniBatchSGD,
    Modes,
    PowerLaw,
    alpha_crit,
    asymptotics,
    blow_up,
    blow_up_guide,
    converges,
    from_power_law,
    lambda_crit,
    mode_limit,
    modes_converge,
    noise_strength,
    phase,
    schedule,
    spectral_diagonal,
    spectral_radius,
    talbot_loss,
    total_noise,
)

#: Cells and values of the lowest loss after 10,000 steps, of 100 x 50.
PUBLISHED = {1: (5, 16, -20.754), 10: (18, 21, -23.688)}


def grid():
    alpha = torch.linspace(0, 4, 100, dtype=torch.float64)
    beta = torch.linspace(-1, 1, 50, dtype=torch.float64)
    return torch.meshgrid(alpha[1:], beta[1:-1], indexing="ij")


def late_growth(spectrum, sgd, batch, steps=3000):
    rates = schedule(steps, float(sgd.alpha), float(sgd.beta), batch)
    _, losses = spectral_diagonal(
        spectrum, Modes.start(spectrum), rates, steps, sgd.tau1, sgd.tau2
    )
    return (losses[-1] / losses[-2]).item()


@pytest.mark.parametrize("batch", PUBLISHED)
def test_the_lowest_loss_lies_in_the_published_cell(batch):
    spectrum = from_power_law(1.5, 3.0, 1000)
    alpha, beta = grid()
    sgd = MiniBatchSGD(alpha, beta, noise_strength(batch, 1000))
    stable = converges(sgd, spectrum)
    inside = MiniBatchSGD(alpha[stable], beta[stable], sgd.gamma)
    losses = torch.full_like(alpha, math.inf)
    losses[stable] = talbot_loss(inside, spectrum, 1e4)
    i, j = divmod(losses.argmin().item(), alpha.shape[1])
    assert (i + 1, j + 1) == PUBLISHED[batch][:2]
    assert abs(losses.min().log().item() - PUBLISHED[batch][2]) < 1e-3


def test_no_setting_beyond_the_modes_limit_counts_as_stable():
    spectrum = from_power_law(1.5, 3.0, 200)
    alpha, beta = grid()
    for gamma in (1.0, 0.1, 0.0):
        sgd = MiniBatchSGD(alpha, beta, gamma)
        stable = converges(sgd, spectrum)
        assert not (stable & ~modes_converge(sgd, spectrum)).any()
        assert (alpha[stable] < 2 * (1 + beta[stable])).all()
        # where some terms have turned negative the sum alone would mislead
        misleading = ~modes_converge(sgd, spectrum) & (total_noise(sgd, spectrum) < 1)
        assert misleading.any()


@pytest.mark.parametrize("beta", [-0.4, 0.0, 0.5])
@pytest.mark.parametrize("tau2", [1.0, -1.0, 0.0])
def test_losses_decay_below_the_critical_rate_and_grow_above(beta, tau2):
    spectrum = from_power_law(1.5, 1.0, 50)
    sgd = MiniBatchSGD(1.0, beta, noise_strength(2, 50), 1.0, tau2)
    critical = alpha_crit(sgd, spectrum).item()
    for factor in (0.97, 1.03):
        near = MiniBatchSGD(factor * critical, beta, sgd.gamma, 1.0, tau2)
        growth, radius = late_growth(spectrum, near, 2), spectral_radius(near, spectrum)
        assert (growth < 1) == (radius < 1) == (factor < 1)
        assert abs(radius - growth) < (1e-3 if growth < 1 else 1e-8)


def test_critical_rates_of_many_settings_solve_the_equation():
    spectrum = from_power_law(1.7, 1.0, 100)
    beta = torch.linspace(-0.8, 0.9, 7, dtype=torch.float64)
    gamma = torch.tensor([[1.0], [0.3]], dtype=torch.float64)
    critical = alpha_crit(MiniBatchSGD(1.0, beta, gamma), spectrum)
    assert critical.shape == (2, 7)
    noise = total_noise(MiniBatchSGD(critical, beta, gamma), spectrum)
    torch.testing.assert_close(noise, torch.ones_like(noise), rtol=1e-12, atol=0)


def test_without_noise_the_limit_is_that_of_heavy_ball():
    spectrum = from_power_law(1.5, 1.0, 20)
    beta = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64)
    sgd = MiniBatchSGD(1.0, beta, 0.0)
    torch.testing.assert_close(mode_limit(sgd, spectrum), 2 * (1 + beta))
    torch.testing.assert_close(alpha_crit(sgd, spectrum), 2 * (1 + beta))


def test_the_critical_eigenvalue_has_its_known_value():
    assert abs(lambda_crit(from_power_law(1.7, 1.0, 1000)) - 1.5790329959) < 1e-9


@pytest.mark.parametrize("tau1, tau2", [(1.0, 1.0), (1.0, -1.0), (0.5, 2.0)])
def test_the_critical_eigenvalue_solves_its_equation(tau1, tau2):
    spectrum = from_power_law(1.5, 1.0, 60)
    x = lambda_crit(spectrum, tau1, tau2)
    lam = spectrum.eigenvalues
    assert x > -tau2
    assert abs((tau1 * lam / (tau2 * lam + x)).sum().item() - 1) < 1e-10


def test_the_second_asymptote_is_tight_for_large_momentum():
    spectrum = from_power_law(1.5, 1.0, 100)
    beta = torch.tensor([0.0, 0.9, 0.999], dtype=torch.float64)
    gamma = 0.5
    bound = 2 / (gamma * lambda_crit(spectrum))
    found = alpha_crit(MiniBatchSGD(1.0, beta, gamma), spectrum) / (1 - beta)
    assert (found < bound).all()
    assert found[0] < 0.95 * bound
    assert found[2] > 0.999 * bound


def test_too_much_tau_can_diverge_below_the_critical_rate():
    spectrum = from_power_law(1.5, 1.0, 200)
    sgd = MiniBatchSGD(1.0, 0.0, noise_strength(2, 200), 1.0, 2.0)
    near = MiniBatchSGD(
        0.97 * alpha_crit(sgd, spectrum).item(), 0.0, sgd.gamma, 1.0, 2.0
    )
    assert spectral_radius(near, spectrum) > 1


def test_the_radius_of_many_modes_is_that_of_the_whole_matrix():
    spectrum = from_power_law(1.5, 1.0, 250)
    sgd = MiniBatchSGD(1.2, 0.3, 0.9)
    radius = spectral_radius(sgd, spectrum)  # by products
    assert abs(radius - 1 / blow_up(sgd, spectrum).r) < 1e-9


def test_diverging_losses_grow_as_predicted():
    spectrum = from_power_law(1.5, 1.0, 40)
    sgd = MiniBatchSGD(1.3, 0.2, 1.0)
    found = blow_up(sgd, spectrum)
    _, losses = spectral_diagonal(
        spectrum, Modes.start(spectrum), schedule(400, 1.3, 0.2, 1), 400
    )
    assert abs((losses[-1] / losses[-2]).item() * found.r - 1) < 1e-11
    predicted = math.log(found.prefactor) - 400 * math.log(found.r)
    assert abs(math.log(losses[-1].item()) - predicted) < 1e-9
    assert found.time == pytest.approx(1 / (1 - found.r))


def test_the_guide_has_the_order_of_the_blow_up():
    law = PowerLaw(0.75, 1.0)
    spectrum = from_power_law(0.75, 1.0, 10**6).binned(2000, 100)
    sgd = MiniBatchSGD(0.1, 0.0, 1.0)
    ratio = blow_up_guide(sgd, law) / (1 - blow_up(sgd, spectrum).r)
    assert 1.2 < ratio < 1.8  # to leading order only


@pytest.mark.parametrize(
    "nu, kappa, batch, tolerance",
    [(1.5, 0.75, 10, 0.03), (2.0, 1.0, 1, 0.03), (1.5, 3.0, 1, 0.01)],
)
def test_late_losses_have_the_predicted_size(nu, kappa, batch, tolerance):
    N, t = 10**6, 1e5
    spectrum = from_power_law(nu, kappa, N)
    first = spectrum.coefficients[0].item()
    law = PowerLaw(nu, kappa, 1.0, first / kappa)
    sgd = MiniBatchSGD(0.1, 0.2, noise_strength(batch, N))
    found = talbot_loss(sgd, spectrum.binned(3000, 100), t).item()
    assert abs(asymptotics(sgd, spectrum, law).loss(t) / found - 1) < tolerance


def test_the_transition_is_where_both_terms_are_equal():
    law = PowerLaw(1.5, 3.0)
    found = asymptotics(
        MiniBatchSGD(0.2, 0.0, 0.01), from_power_law(1.5, 3.0, 1000), law
    )
    t = found.transition
    assert found.signal * t**-found.zeta == pytest.approx(
        found.noise * t**-found.xi, rel=1e-9
    )


@pytest.mark.parametrize(
    "nu, kappa, noise, expected",
    [
        (0.4, 1.0, 0.0, "immediate divergence"),
        (0.8, 1.0, 0.0, "eventual divergence"),
        (1.5, 1.0, 1.2, "eventual divergence"),
        (1.5, 1.0, 0.5, "signal-dominated"),
        (1.5, 3.0, 0.5, "noise-dominated"),
    ],
)
def test_phases_have_their_borders(nu, kappa, noise, expected):
    assert phase(PowerLaw(nu, kappa), noise) == expected


def test_what_does_not_apply_is_refused():
    spectrum = from_power_law(1.5, 3.0, 100)
    with pytest.raises(ValueError, match="diverges"):
        asymptotics(MiniBatchSGD(1.5), spectrum, PowerLaw(1.5, 3.0))
    with pytest.raises(ValueError, match="nu"):
        asymptotics(MiniBatchSGD(0.01), spectrum, PowerLaw(0.9, 3.0))
    with pytest.raises(ValueError, match="U"):
        blow_up(MiniBatchSGD(0.1), spectrum)
    with pytest.raises(ValueError, match="nu"):
        blow_up_guide(MiniBatchSGD(0.1), PowerLaw(1.5, 3.0))
