"""Spectra from kernels, power laws and products; fits; bins."""

import numpy as np
import pytest
import torch

from lightning_ecd.theory import (
    MiniBatchSGD,
    Spectrum,
    fit_power_law,
    from_kernel,
    from_lanczos,
    from_power_law,
    synthetic_kernel,
    tail_sums,
    talbot_loss,
    total_noise,
)


def test_the_synthetic_problem_has_its_spectrum():
    spectrum = from_power_law(1.5, 0.75, 30, lambda_min=0.01)
    k = np.arange(1, 31)
    np.testing.assert_allclose(spectrum.eigenvalues, 0.01 + 0.99 * k**-1.5)
    c = k**-1.75
    np.testing.assert_allclose(spectrum.coefficients, c / c.sum())
    assert spectrum.loss == pytest.approx(1 / 60)


def test_a_kernel_made_of_a_spectrum_gives_it_back():
    spectrum = from_power_law(1.2, 0.5, 40)
    K, d = synthetic_kernel(spectrum, seed=3)
    found, U = from_kernel(7 * K, d)
    torch.testing.assert_close(found.eigenvalues, spectrum.eigenvalues)
    torch.testing.assert_close(found.coefficients, spectrum.coefficients)
    assert found.scale == pytest.approx(7)
    torch.testing.assert_close(U * found.eigenvalues @ U.T * 40, K)
    assert found.loss == pytest.approx((d @ d).item() / 80)


def test_other_seeds_give_other_eigenvectors():
    spectrum = from_power_law(1.2, 0.5, 10)
    K, d = synthetic_kernel(spectrum, seed=0)
    again, _ = synthetic_kernel(spectrum, seed=0)
    other, _ = synthetic_kernel(spectrum, seed=1)
    assert torch.equal(K, again) and not torch.equal(K, other)


def test_products_alone_give_the_same_losses():
    N = 400
    spectrum = from_power_law(1.3, 0.6, N)
    K, d = synthetic_kernel(spectrum)
    found = from_lanczos(lambda rows: rows @ K, d, top=100, steps=80)
    t = torch.tensor([100.0, 1000, 10000], dtype=torch.float64)
    sgd = MiniBatchSGD(0.2, 0.3, 0.3)
    expected = talbot_loss(sgd, spectrum, t)
    torch.testing.assert_close(talbot_loss(sgd, found, t), expected, rtol=4e-3, atol=0)
    assert found.loss == pytest.approx(spectrum.loss)
    assert found.counts.sum().item() == pytest.approx(N + 100)  # 100 of them zeros


def test_a_small_problem_is_found_whole():
    spectrum = from_power_law(1.3, 0.6, 20)
    K, d = synthetic_kernel(spectrum)
    found = from_lanczos(lambda rows: rows @ K, d, top=100, steps=100)
    sgd = MiniBatchSGD(0.2, 0.3, 0.3)
    expected = talbot_loss(sgd, spectrum, 100.0)
    torch.testing.assert_close(
        talbot_loss(sgd, found, 100.0), expected, rtol=1e-8, atol=0
    )


def test_bins_keep_sums_and_losses():
    spectrum = from_power_law(1.5, 1.0, 50_000)
    few = spectrum.binned(500, 50)
    assert len(few.eigenvalues) < 1000
    assert few.counts.sum() == 50_000
    assert few.loss == pytest.approx(spectrum.loss, rel=1e-12)
    sgd = MiniBatchSGD(0.2, 0.0, 1.0)
    torch.testing.assert_close(
        total_noise(sgd, few), total_noise(sgd, spectrum), rtol=1e-5, atol=0
    )
    found, expected = (talbot_loss(sgd, s, 1e5) for s in (few, spectrum))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_few_rows_stay_as_they_are():
    spectrum = from_power_law(1.5, 1.0, 100)
    assert spectrum.binned(100) is spectrum


def test_clamping_sets_the_first_coefficients_to_the_last_of_them():
    c = from_power_law(1.5, 1.0, 10).clamped(3).coefficients
    assert c[0] == c[1] == c[2] != c[3]


@pytest.mark.parametrize("index_from", [0, 1])
def test_fits_find_pure_power_laws(index_from):
    k = torch.arange(index_from, 2000 + index_from, dtype=torch.float64)
    values = 3 * k.clamp_min(1e-3) ** -1.7
    fit = fit_power_law(values, index_from=index_from)
    assert fit.exponent == pytest.approx(1.7)
    assert fit.amplitude == pytest.approx(3)
    assert fit.exponent_error < 1e-12 and fit.intercept_error < 1e-11


def test_fits_average_three_windows():
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(400, generator=draws, dtype=torch.float64) / 10
    values = torch.arange(1, 401, dtype=torch.float64) ** -1.2 * noise.exp()
    slopes = []
    for low, high in ((5, 103.333333), (103.333333, 201.666667), (201.666667, 300)):
        at = np.linspace(low, high, 50).astype(int)
        slopes.append(np.polyfit(np.log(at + 1), np.log(values[at].numpy()), 1)[0])
    fit = fit_power_law(values, 5, 300)
    assert fit.exponent == pytest.approx(-np.mean(slopes), rel=1e-6)
    assert fit.exponent_error == pytest.approx(np.std(slopes), rel=1e-5)


def test_tail_sums_begin_with_the_whole():
    values = torch.tensor([4.0, 2.0, 1.0])
    assert tail_sums(values).tolist() == [7.0, 3.0, 1.0]


def test_normalising_divides_by_the_largest():
    spectrum = Spectrum(torch.tensor([4.0, 2.0]), torch.ones(2), 2).normalized()
    assert spectrum.eigenvalues.tolist() == [1.0, 0.5] and spectrum.scale == 4


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((0, 1, 10), "nu"),
        ((1, 0, 10), "kappa"),
        ((1, 1, 0), "samples"),
        ((1, 1, 10, 1.0), "lambda_min"),
    ],
)
def test_bad_power_laws_are_refused(arguments, name):
    with pytest.raises(ValueError, match=name):
        from_power_law(*arguments)


@pytest.mark.parametrize("span", [(-1, 5), (5, 5), (0, 10), (0, 5)])
def test_bad_windows_are_refused(span):
    with pytest.raises(ValueError, match="left"):
        fit_power_law(torch.ones(10), *span, index_from=0)
