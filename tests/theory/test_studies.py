"""Studies of the theory: what they find, against the recursion and known numbers."""

import math

import pytest
import torch

from lightning_ecd.theory import (
    MiniBatchSGD,
    Modes,
    Spectrum,
    alpha_crit,
    from_power_law,
    save_kernel,
    schedule,
    spectral_diagonal,
    synthetic_kernel,
)
from lightning_ecd.theory.problems import Given, KernelFile, PowerLaws
from lightning_ecd.theory.studies import (
    BestMomentum,
    Budget,
    GainMap,
    LossMap,
    RegimeCurves,
    SpectrumStudy,
    local_minima,
    loss_map,
)
from lightning_ecd.theory.studies.curves import combined


def told(what, share):
    assert what and 0 <= share <= 1


def recursion(spectrum, alpha, beta, batch, steps, tau=1.0):
    state = Modes.start(spectrum)
    rates = schedule(steps, alpha, beta, batch)
    return spectral_diagonal(spectrum, state, rates, steps, tau2=tau)[1]


@pytest.mark.parametrize("steps", [50, 400])
def test_cells_of_a_map_hold_the_losses_of_the_recursion(steps):
    spectrum = from_power_law(1.5, 1.0, 60)
    alpha = torch.tensor([0.0, 0.2, 0.6, 3.9], dtype=torch.float64)
    beta = torch.tensor([-1.0, -0.4, 0.0, 0.5], dtype=torch.float64)
    losses = loss_map(spectrum, alpha, beta, 5, steps, 0.5)
    assert losses[0].isinf().all() and losses[:, 0].isinf().all()
    assert losses[3].isinf().all()  # it diverges
    for i in (1, 2):
        for j in (1, 2, 3):
            expected = recursion(
                spectrum, alpha[i].item(), beta[j].item(), 5, steps, 0.5
            )[-1]
            torch.testing.assert_close(losses[i, j], expected, rtol=1e-7, atol=0)


def test_local_minima_are_the_least_of_their_neighbours():
    losses = torch.full((5, 6), 9.0)
    losses[1, 1], losses[3, 4], losses[3, 5] = 1.0, 2.0, 3.0
    losses[0, 5] = torch.inf
    found = local_minima(losses)
    assert (1, 1) in found and (3, 4) in found and (3, 5) not in found
    assert (0, 5) not in found


def test_a_loss_map_finds_the_published_cell_and_draws_it():
    problem = PowerLaws(1.5, 3.0, 1000)
    found = LossMap(batches=[10, 0]).run(problem, told)
    assert found.numbers["b_10/index"] == [18, 21]
    assert found.numbers["b_10/log_loss"] == pytest.approx(-23.688, abs=1e-3)
    assert [18, 21] in [m["index"] for m in found.numbers["b_10/local_minima"]]
    # without noise the border is the line alpha = 2 (1 + beta)
    assert found.numbers["b_1000/border"] == pytest.approx(4, abs=0.02)
    assert found.arrays["loss_10"].shape == (100, 50)
    figure = found.figures["loss_map"]()
    assert [axes.get_title() for axes in figure.axes[:2]] == ["b = 10", "b = 1000"]


def test_regime_curves_have_every_regime_of_every_setting():
    study = RegimeCurves(
        alpha=[0.3, 0.6], beta=[0.0, 0.4], batch=[5], combine="zip", steps=60,
        runs=4, rank=None, taus=[1.0, -1.0], points=12,
    )  # fmt: skip
    problem = PowerLaws(1.5, 1.0, 40)
    found = study.run(problem, told)
    steps = found.arrays["step"]
    assert steps[0] == 0 and steps[-1] == 60
    for alpha, beta in ((0.3, 0.0), (0.6, 0.4)):
        name = f"alpha_{alpha:g}_beta_{beta:g}_b_5"
        losses = recursion(problem.spectrum(), alpha, beta, 5, 60)
        expected = torch.cat([losses.new_tensor([problem.spectrum().loss]), losses])
        torch.testing.assert_close(found.arrays[f"{name}/tau_1"], expected[steps])
        assert found.arrays[f"{name}/linearized"].shape == (len(steps), 4)
        assert {f"{name}/averaged", f"{name}/tau_-1"} <= set(found.arrays)
        labels = found.figures[name]().axes[0].get_legend_handles_labels()[1]
        assert labels == ["linearized", "averaged", "tau_1", "tau_-1"]


def test_the_first_modes_are_followed_without_a_whole_average():
    study = RegimeCurves(alpha=[0.4], batch=[5], steps=30, runs=0, rank=20, points=5)
    exact = RegimeCurves(alpha=[0.4], batch=[5], steps=30, runs=0, rank=None, points=5)
    problem = PowerLaws(1.5, 1.0, 40)
    name = "alpha_0.4_beta_0_b_5/averaged"
    few, all_ = (s.run(problem, told).arrays[name] for s in (study, exact))
    assert 0 < ((few - all_) / all_).abs().max() < 0.02


@pytest.mark.parametrize("how", ["product", "zip"])
def test_lists_are_combined(how):
    settings = combined(how, alpha=[1, 2], beta=[0.5], batch=[3, 4])
    expected = {
        "product": [(1, 0.5, 3), (1, 0.5, 4), (2, 0.5, 3), (2, 0.5, 4)],
        "zip": [(1, 0.5, 3), (2, 0.5, 4)],
    }
    assert settings == expected[how]


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="beta must have 1 or 3"):
        combined("zip", alpha=[1, 2, 3], beta=[0.1, 0.2], batch=[1])
    with pytest.raises(ValueError, match="combine"):
        combined("sum", alpha=[1])


def test_small_rates_depend_on_the_samples_seen_alone():
    # the values of the specification: nu 1.4, kappa 0.5, N = 800, alpha = 0.008 b
    study = Budget(batches=[1, 2, 6, 24], rate=0.008, samples=2400)
    found = study.run(PowerLaws(1.4, 0.5, 800), told)
    losses = [found.numbers[f"b_{b}/loss"] for b in (1, 2, 6, 24)]
    assert losses == pytest.approx([0.16428, 0.16428, 0.16424, 0.16410], abs=2e-5)
    assert found.figures["budget"]().axes[0].get_xlabel() == "samples seen"


def test_a_diverging_batch_size_is_said_to_be():
    study = Budget(batches=[1, 100], rate=0.1, samples=100_000)
    found = study.run(PowerLaws(1.5, 1.0, 200), told)
    assert "b_100/loss" not in found.numbers
    assert "b_1/loss" in found.numbers


def test_the_spectrum_has_its_exponents_and_critical_rates():
    problem = PowerLaws(1.5, 3.0, 2000)
    found = SpectrumStudy(batches=[1, 10], tails=(10, 100)).run(problem, told)
    assert found.numbers["nu"] == pytest.approx(1.5)
    assert found.numbers["kappa"] == pytest.approx(3.0, rel=0.05)
    assert found.numbers["phase"] == "noise-dominated"
    expected = alpha_crit(MiniBatchSGD(1.0, 0.0, 1.0), problem.spectrum()).item()
    assert found.numbers["b_1/alpha_crit"] == pytest.approx(expected)
    assert found.numbers["b_10/transition"] > found.numbers["b_1/transition"]
    assert len(found.figures["spectrum"]().axes[0].lines) == 4


class Exponential(PowerLaws):
    """No power law: every window has exponents of its own."""

    def spectrum(self):
        k = torch.arange(1, 401, dtype=torch.float64)
        return Spectrum((-k / 20).exp(), (-k / 10).exp(), 400)


@pytest.mark.parametrize("index_from", [0, 1])
def test_the_picture_of_a_spectrum_shows_the_numbers(index_from):
    study = SpectrumStudy([1], 0.0, (2, 70), (1, 15), index_from)
    found = study.run(Exponential(), told)
    legend = found.figures["spectrum"]().axes[0].get_legend().get_texts()
    texts = [text.get_text() for text in legend]
    for name, text in zip(("nu", "kappa"), texts, strict=True):
        value, error = found.numbers[name], found.numbers[f"{name}_error"]
        assert text.endswith(f"= {value:.2f} ± {error:.2f}")


def test_the_map_of_exponents_has_the_known_borders():
    found = GainMap(kappa=(0.0, 6.0, 601)).run(None, told)
    borders = [found.numbers[f"nu_{nu}/border"] for nu in ("1.5", "2", "3")]
    assert borders == pytest.approx([1.46, 2.30, 3.82], abs=0.03)
    assert len(found.figures["negative_momentum"]().axes) == 2


def test_best_momenta_are_the_known_ones():
    study = BestMomentum(laws=[(2.0, 8.0), (1.5, 4.0, 0.11)], beta=(-0.3, 0.3, 5))
    found = study.run(None, told)
    assert found.numbers["nu_2_kappa_8/alpha"] == pytest.approx(0.2433, abs=1e-4)
    assert found.numbers["nu_2_kappa_8/log_loss"] == pytest.approx(-25.106, abs=1e-3)
    assert found.numbers["nu_2_kappa_8/slope"] == pytest.approx(0.1617, abs=3e-4)
    # the rate that was given is held
    spectrum = from_power_law(1.5, 4.0, 10_000)
    loss = recursion(spectrum, 0.11, -0.3, 1, 2000)[-1]
    again = BestMomentum(laws=[(1.5, 4.0, 0.11)], steps=2000, beta=(-0.3, 0.3, 5))
    found = again.run(None, told)
    torch.testing.assert_close(
        found.arrays["nu_1.5_kappa_4/loss"][0], loss, rtol=1e-7, atol=0
    )
    assert len(found.figures["momentum"]().axes) == 2


def test_kernels_come_from_files(tmp_path):
    K, d = synthetic_kernel(from_power_law(1.5, 1.0, 20))
    save_kernel(tmp_path / "k.pt", 3 * K, 2 * d + 1)
    problem = KernelFile(str(tmp_path / "k.pt"))
    found, target = problem.kernel()
    torch.testing.assert_close(found, K)
    assert target.mean().abs() < 1e-12 and target.std().item() == pytest.approx(1)
    assert problem.spectrum().scale == pytest.approx(3)


def test_a_given_kernel_is_normalised():
    K, d = synthetic_kernel(from_power_law(1.5, 1.0, 20))
    found, same = Given(5 * K, d).kernel()
    torch.testing.assert_close(found, K)
    torch.testing.assert_close(same, d)


def test_power_laws_can_be_clamped():
    c = PowerLaws(1.5, 3.0, 10, clamp=4).spectrum().coefficients
    assert c[0] == c[3] > c[4]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: LossMap(steps=0), "steps"),
        (lambda: LossMap(batches=[-1]), "batches"),
        (lambda: RegimeCurves(batch=[0]), "batch"),
        (lambda: Budget(batches=[]), "batches"),
        (lambda: BestMomentum(laws=[(1.0,)]), "laws"),
        (lambda: GainMap(samples=0), "samples"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_losses_below_resolution_are_not_minus_infinity():
    found = LossMap(batches=[1000], alpha=(0.0, 1.0, 5), beta=(-1.0, 1.0, 9))
    numbers = found.run(PowerLaws(1.1, 3.0, 1000), told).numbers
    assert math.isfinite(numbers["b_1000/log_loss"])
