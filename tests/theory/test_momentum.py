"""Which momentum is best, against published and independently measured optima."""

import math

import pytest
import torch

from lightning_ecd.theory import (
    MiniBatchSGD,
    best_rate,
    from_power_law,
    gain_map,
    momentum_slope,
    negative_momentum_gain,
    optimum,
    talbot_loss,
    total_noise,
    total_signal,
)


def late(a, beta, spectrum, gamma=1.0, tau=1.0):
    """The late loss of the noise phase at an effective rate, up to a factor."""
    sgd = MiniBatchSGD(a * (1 - beta), beta, gamma, tau, tau)
    loss = total_signal(sgd, spectrum) / (1 - total_noise(sgd, spectrum)) ** 2
    return loss.log().item()


@pytest.mark.parametrize("gamma, tau", [(1.0, 1.0), (0.3, 1.0), (0.5, 0.5)])
def test_the_slope_is_that_of_the_late_loss(gamma, tau):
    spectrum = from_power_law(2.0, 4.0, 500)
    a, h = 0.1, 1e-4
    difference = late(a, h, spectrum, gamma, tau) - late(a, -h, spectrum, gamma, tau)
    found = momentum_slope(MiniBatchSGD(a, 0.0, gamma, tau, tau), spectrum)
    assert found.item() == pytest.approx(difference / (2 * h), rel=1e-5)


def test_the_slope_has_its_published_value():
    spectrum = from_power_law(2.0, 8.0, 1000)
    sgd = MiniBatchSGD(best_rate(spectrum, 2.0))
    assert momentum_slope(sgd, spectrum).item() == pytest.approx(0.1617, abs=2e-4)


def test_the_best_rate_minimises_the_late_loss():
    spectrum, nu = from_power_law(1.5, 4.0, 1000), 1.5
    a = best_rate(spectrum, nu)
    losses = [
        late(x, 0.0, spectrum) + math.log(x) / nu for x in (0.99 * a, a, 1.01 * a)
    ]
    assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize("nu, border", [(1.5, 1.46), (2.0, 2.30), (3.0, 3.82)])
def test_negative_momentum_helps_above_the_known_border(nu, border):
    kappa = torch.arange(0.5, 6, 0.01, dtype=torch.float64)
    gain = gain_map(torch.tensor([nu], dtype=torch.float64), kappa, 1000)[0]
    first = kappa[(gain > 0).nonzero()[0]].item()
    assert first == pytest.approx(border, abs=0.015)
    assert first < 2 * nu - 1
    for i in (10, 300):
        spectrum = from_power_law(nu, kappa[i].item(), 1000)
        found = negative_momentum_gain(spectrum, nu)
        assert found == pytest.approx(gain[i].item(), rel=1e-9)


@pytest.mark.parametrize("nu, kappa", [(1.5, 2.0), (2.0, 2.0)])
def test_the_gain_has_the_sign_of_the_slope_at_the_best_rate(nu, kappa):
    spectrum = from_power_law(nu, kappa, 1000)
    slope = momentum_slope(MiniBatchSGD(best_rate(spectrum, nu)), spectrum).item()
    assert (negative_momentum_gain(spectrum, nu) > 0) == (slope > 0)


#: (nu, kappa) -> best rate and log loss at beta = 0, after 10,000 steps, N = 10,000.
RATES = {(1.5, 4.0): (0.1132, -23.202), (2.0, 8.0): (0.2433, -25.106)}


@pytest.mark.parametrize("nu, kappa", RATES)
def test_the_best_rate_without_momentum_is_the_known_one(nu, kappa):
    spectrum = from_power_law(nu, kappa, 10_000)
    start = MiniBatchSGD(best_rate(spectrum, nu))
    found = optimum(start, spectrum, 1e4, fixed=("beta",))
    assert found.alpha == pytest.approx(RATES[nu, kappa][0], abs=1e-4)
    assert math.log(found.loss) == pytest.approx(RATES[nu, kappa][1], abs=1e-3)
    assert found.beta == 0


#: (nu, kappa) -> best momentum at the best rate's formula, and log L(-0.3)/L there.
MOMENTA = {
    (1.5, 2.5): (0.30, 0.341),
    (1.5, 3.5): (-0.09, 0.009),
    (2.0, 3.0): (0.30, 0.597),
    (2.0, 5.0): (-0.15, 0.007),
}


@pytest.mark.parametrize("nu, kappa", MOMENTA)
def test_the_best_momentum_on_the_published_grid(nu, kappa):
    spectrum = from_power_law(nu, kappa, 10_000)
    beta = torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)
    losses = talbot_loss(MiniBatchSGD(best_rate(spectrum, nu), beta), spectrum, 1e4)
    at, rise = MOMENTA[nu, kappa]
    assert beta[losses.argmin()].item() == pytest.approx(at, abs=0.011)
    assert (losses[0] / losses.min()).log().item() == pytest.approx(rise, abs=1e-3)


@pytest.mark.parametrize("kappa, plain, clamped", [(3, -0.09, 0.03), (4, -0.16, 0.01)])
def test_little_target_in_the_top_modes_turns_the_sign(kappa, plain, clamped):
    found = []
    spectrum = from_power_law(1.5, kappa, 10_000)
    start = MiniBatchSGD(best_rate(spectrum, 1.5))
    for problem in (spectrum, spectrum.clamped(5)):
        rate = optimum(start, problem, 1e4, fixed=("beta",)).alpha
        best = optimum(MiniBatchSGD(rate), problem, 1e4, fixed=("alpha",))
        found.append(best.beta)
    assert found == pytest.approx([plain, clamped], abs=0.007)


#: (nu, kappa) -> best momentum of late times, then together with the rate, and gain.
LATE = {
    (1.5, 2.5): (-0.08, -0.32, 1.0),
    (2.0, 5.0): (-0.16, -0.30, 2.3),
}


@pytest.mark.parametrize("nu, kappa", LATE)
def test_negative_momentum_is_best_at_late_times(nu, kappa):
    spectrum = from_power_law(nu, kappa, 10**6).binned(2000, 200)
    start = MiniBatchSGD(best_rate(spectrum, nu))
    rate = optimum(start, spectrum, 1e7, fixed=("beta",))
    best = optimum(MiniBatchSGD(rate.alpha), spectrum, 1e7, fixed=("alpha",))
    joint = optimum(MiniBatchSGD(rate.alpha, -0.1), spectrum, 1e7)
    momentum, both, gain = LATE[nu, kappa]
    assert best.beta == pytest.approx(momentum, abs=0.007)
    assert joint.beta == pytest.approx(both, abs=0.01)
    assert 100 * (rate.loss / joint.loss - 1) == pytest.approx(gain, abs=0.06)


def test_what_cannot_be_searched_is_refused():
    spectrum = from_power_law(1.5, 3.0, 100)
    with pytest.raises(ValueError, match="diverges"):
        optimum(MiniBatchSGD(1.9), spectrum, 1e4)
    with pytest.raises(ValueError, match="fixed"):
        optimum(MiniBatchSGD(0.1), spectrum, 1e4, fixed=("gamma",))
    with pytest.raises(ValueError, match="nu"):
        best_rate(spectrum, 1.0)
