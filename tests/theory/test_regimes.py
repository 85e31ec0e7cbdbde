"""Four regimes of mini-batch SGD: the same formulas, term by term, and their limits."""

import itertools

import numpy as np
import pytest
import torch

from lightning_ecd.theory import (
    Averaged,
    AveragedModes,
    Modes,
    Sampled,
    SampledAdam,
    averaged,
    averaged_modes,
    from_kernel,
    sampled,
    sampled_adam,
    schedule,
    spectral_diagonal,
)
from tests.reference import sgd_theory as reference


def random_problem(N, features=None, seed=0):
    draws = torch.Generator().manual_seed(seed)
    A = torch.randn(N, features or 2 * N, generator=draws, dtype=torch.float64)
    K = A @ A.T
    d = torch.randn(N, generator=draws, dtype=torch.float64)
    return K * N / torch.linalg.eigvalsh(K)[-1], d


def changing(steps, N):
    """A schedule in which everything changes, with steps without momentum."""
    return schedule(
        steps,
        lambda s: 0.5 + 0.3 * (s % 3),
        lambda s: [0.0, 0.4, -0.3][s % 3],
        lambda s: 1 + s % N,
    )


def drawn(schedule, N, runs, seed=0):
    draws = np.random.default_rng(seed)
    batches = [
        np.stack([draws.permutation(N)[:b] for _ in range(runs)])
        for b in schedule.batch.tolist()
    ]
    return batches, lambda s: torch.from_numpy(batches[s])


@pytest.mark.parametrize("form", ["v", "p"])
def test_sampled_runs_follow_the_formulas(form):
    K, d = random_problem(7)
    rates = changing(20, 7)
    batches, draw = drawn(rates, 7, 3)
    _, losses = sampled(K, Sampled.start(d, 3), rates, draw, 20, form)
    for run in range(3):
        expected = reference.sampled(
            K.numpy(),
            d.numpy(),
            [batch[run] for batch in batches],
            rates.alpha.tolist(),
            rates.beta.tolist(),
            form,
        )
        np.testing.assert_allclose(losses[:, run], expected, rtol=1e-12)


@pytest.mark.parametrize("as_released", [False, True])
def test_adam_on_outputs_follows_the_formulas(as_released):
    K, d = random_problem(7)
    rates = changing(20, 7)
    batches, draw = drawn(rates, 7, 2)
    start = SampledAdam.start(d, 2)
    _, losses = sampled_adam(K, start, rates, draw, 20, (0.8, 0.95), as_released)
    for run in range(2):
        expected = reference.sampled_adam(
            K.numpy(),
            d.numpy(),
            [batch[run] for batch in batches],
            rates.alpha.tolist(),
            0.8,
            0.95,
            int(as_released),
        )
        np.testing.assert_allclose(losses[:, run], expected, rtol=1e-12)


def test_both_forms_of_momentum_agree_at_a_constant_rate():
    K, d = random_problem(8)
    rates = schedule(50, 0.7, 0.5, 3)
    _, draw = drawn(rates, 8, 1)
    start = Sampled.start(d)
    _, v = sampled(K, start, rates, draw, 50)
    _, p = sampled(K, start, rates, draw, 50, "p")
    torch.testing.assert_close(v, p, rtol=1e-12, atol=0)


def test_rows_are_summed_in_place_or_copied_with_the_same_result(monkeypatch):
    K, d = random_problem(8)
    rates = schedule(5, 0.7, 0.5, 4)
    _, draw = drawn(rates, 8, 1)
    _, copied = sampled(K, Sampled.start(d), rates, draw, 5)
    monkeypatch.setattr("lightning_ecd.theory.regimes._COPIED", 0)
    _, summed = sampled(K, Sampled.start(d), rates, draw, 5)
    torch.testing.assert_close(copied, summed, rtol=1e-14, atol=0)


def test_averaged_moments_are_the_mean_over_every_sequence_of_batches():
    N, b, T = 4, 2, 3
    K, d = random_problem(N, 6)
    rates = schedule(T, [0.7, 0.4, 0.9], [0.3, -0.2, 0.5], b)
    choices = [torch.tensor([c]) for c in itertools.combinations(range(N), b)]
    C = torch.zeros(N, N, dtype=torch.float64)
    count = 0
    for batches in itertools.product(choices, repeat=T):
        end, _ = sampled(K, Sampled.start(d), rates, batches.__getitem__, T)
        C += torch.outer(end.d[0], end.d[0])
        count += 1
    found, _ = averaged(K, Averaged.start(d), rates, T)
    assert count == 216
    torch.testing.assert_close(found.C, C / count, rtol=0, atol=1e-14)


def test_averaged_losses_follow_the_formulas_in_both_bases():
    K, d = random_problem(9)
    rates = changing(30, 9)
    expected = reference.averaged(
        K.numpy(), d.numpy(), *(column.tolist() for column in rates)
    )
    _, plain = averaged(K, Averaged.start(d), rates, 30)
    spectrum, U = from_kernel(K, d)
    start = AveragedModes.start(U, d)
    _, modes = averaged_modes(spectrum.eigenvalues, U, start, rates, 30)
    np.testing.assert_allclose(plain, expected, rtol=1e-12)
    np.testing.assert_allclose(modes, expected, rtol=1e-10)


def test_averaged_stays_exact_for_thousands_of_steps():
    # without symmetry rounding grows by up to 1 + alpha^2 lambda_1 lambda_2 a step
    N = 40
    K, d = random_problem(N, 30)
    rates = schedule(3000, 1.2, 0.0, 10)
    _, plain = averaged(K, Averaged.start(d), rates, 3000)
    spectrum, U = from_kernel(K, d)
    start = AveragedModes.start(U, d)
    _, modes = averaged_modes(spectrum.eigenvalues, U, start, rates, 3000)
    torch.testing.assert_close(plain, modes, rtol=1e-9, atol=0)


def test_the_first_modes_alone_come_close():
    N = 60
    k = torch.arange(1, N + 1, dtype=torch.float64)
    U = torch.linalg.qr(random_problem(N)[0])[0]
    eigenvalues = k**-1.5
    K, d = N * (U * eigenvalues) @ U.T, U @ k**-1.0
    rates = schedule(300, 0.5, 0.0, 10)
    _, exact = averaged(K, Averaged.start(d), rates, 300)
    errors = []
    for rank in (5, 15, 45):
        start = AveragedModes.start(U, d, rank)
        _, found = averaged_modes(eigenvalues, U, start, rates, 300)
        errors.append(((found - exact) / exact).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[1] < 0.02 and errors[2] < 8e-3


def test_modes_follow_the_formulas():
    K, d = random_problem(6)
    spectrum, _ = from_kernel(K, d)
    rates = changing(25, 6)
    lams, cs = spectrum.eigenvalues.tolist(), spectrum.coefficients.tolist()
    taus = [(1, 1), (1, -1), (0.7, 2)]
    one, two = torch.tensor(taus, dtype=torch.float64).T
    _, losses = spectral_diagonal(
        spectrum, Modes.start(spectrum, 3), rates, 25, one, two
    )
    for i, (tau1, tau2) in enumerate(taus):
        expected = reference.spectral_diagonal(
            lams, cs, 6, *(column.tolist() for column in rates), tau1, tau2
        )
        np.testing.assert_allclose(losses[:, i], expected, rtol=1e-12)


def test_settings_side_by_side_have_rates_of_their_own():
    K, d = random_problem(6)
    spectrum, _ = from_kernel(K, d)
    single = [schedule(20, a, b, n) for a, b, n in ((0.5, 0.2, 1), (1.2, -0.4, 3))]
    both = type(single[0])(*(torch.stack(x, 1) for x in zip(*single, strict=True)))
    _, together = spectral_diagonal(spectrum, Modes.start(spectrum, 2), both, 20)
    for i, rates in enumerate(single):
        _, alone = spectral_diagonal(spectrum, Modes.start(spectrum), rates, 20)
        torch.testing.assert_close(together[:, i], alone, rtol=1e-14, atol=0)


def test_modes_are_exact_on_translation_invariant_data():
    N = 32
    distance = torch.arange(N).minimum(N - torch.arange(N))
    row = torch.exp(-distance.double() / 4)
    K = torch.stack([row.roll(i) for i in range(N)])
    K = K * N / torch.linalg.eigvalsh(K)[-1]
    d = random_problem(N)[1]
    rates = schedule(200, 0.9, 0.4, 3)
    spectrum, _ = from_kernel(K, d)
    _, exact = averaged(K, Averaged.start(d), rates, 200)
    _, modes = spectral_diagonal(spectrum, Modes.start(spectrum), rates, 200)
    torch.testing.assert_close(modes, exact, rtol=1e-12, atol=0)


def test_minus_one_is_exact_for_fresh_gaussian_features():
    # E[psi psi' C psi psi'] = H tr(HC) + 2 HCH; the mean over many fresh samples
    draws = torch.Generator().manual_seed(0)
    h = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    C = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    psi = torch.randn(400_000, 3, generator=draws, dtype=torch.float64) * h.sqrt()
    weights = (psi.square() * C).sum(1)
    fourth = (psi * weights[:, None]).T @ psi / len(psi)
    noise = fourth.diagonal() - h * C * h
    expected = h * (h * C).sum() + h * C * h  # tau1 = 1, tau2 = -1
    torch.testing.assert_close(noise, expected, rtol=0.02, atol=0)


def test_a_larger_tau_has_less_noise():
    K, d = random_problem(20)
    spectrum, _ = from_kernel(K, d)
    taus = torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64)
    rates = schedule(100, 0.3, 0.0, 2)
    _, losses = spectral_diagonal(
        spectrum, Modes.start(spectrum, 5), rates, 100, tau2=taus
    )
    assert (losses[1:].diff(dim=1) < 0).all()


def advance(regime, state, steps):
    K, d = random_problem(7)
    spectrum, U = from_kernel(K, d)
    rates = changing(20, 7)
    _, draw = drawn(rates, 7, 2)
    calls = {
        "sampled": lambda: sampled(K, state or Sampled.start(d, 2), rates, draw, steps),
        "adam": lambda: sampled_adam(
            K, state or SampledAdam.start(d, 2), rates, draw, steps
        ),
        "averaged": lambda: averaged(K, state or Averaged.start(d), rates, steps),
        "modes": lambda: averaged_modes(
            spectrum.eigenvalues, U, state or AveragedModes.start(U, d, 4), rates, steps
        ),
        "diagonal": lambda: spectral_diagonal(
            spectrum, state or Modes.start(spectrum), rates, steps
        ),
    }
    return calls[regime]()


@pytest.mark.parametrize("regime", ["sampled", "adam", "averaged", "modes", "diagonal"])
def test_states_go_on_to_the_bit(regime, tmp_path):
    _, whole = advance(regime, None, 20)
    middle, first = advance(regime, None, 8)
    torch.save(middle._asdict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    _, second = advance(regime, type(middle)(**saved), 12)
    assert torch.equal(torch.cat([first, second]), whole)


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match="20 steps, 21"):
        advance("averaged", None, 21)
