"""Power laws of a spectrum, and what follows from them."""

from collections.abc import Sequence
from typing import Any

from lightning_ecd.checks import at_least
from lightning_ecd.theory.generating import MiniBatchSGD, noise_strength
from lightning_ecd.theory.problems import Problem
from lightning_ecd.theory.spectrum import WINDOWS, fit_power_law, tail_sums
from lightning_ecd.theory.stability import (
    PowerLaw,
    alpha_crit,
    asymptotics,
    lambda_crit,
    phase,
)
from lightning_ecd.theory.studies.study import Findings, Progress, TheoryStudy


class SpectrumStudy(TheoryStudy):
    """Power laws of the spectrum, phases and critical rates.

    Args:
        batches: Sizes of the mini-batches.
        beta: β.
        eigenvalues: First and last position of the fit of ν.
        tails: Of the fit of κ.
        index_from: k of the first value; 0 reproduces the released code.
    """

    def __init__(
        self,
        batches: Sequence[int] = (1, 10, 100),
        beta: float = 0.0,
        eigenvalues: tuple[int, int] = WINDOWS[0],
        tails: tuple[int, int] = WINDOWS[1],
        index_from: int = 1,
    ):
        at_least(1, batches=min(batches, default=0))
        self.batches, self.beta = list(batches), beta
        self.windows, self.index_from = (eigenvalues, tails), index_from

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        spectrum = problem.spectrum()
        total = spectrum.coefficients.sum()
        tails = tail_sums(spectrum.coefficients)
        fits = [
            fit_power_law(values, *window, index_from=self.index_from)
            for values, window in zip(
                (spectrum.eigenvalues, tails), self.windows, strict=True
            )
        ]
        nu, kappa = fits
        law = PowerLaw(nu.exponent, kappa.exponent, nu.amplitude, kappa.amplitude)
        found = Findings(
            numbers={
                "samples": spectrum.samples,
                "loss_at_start": spectrum.loss,
                "nu": law.nu,
                "nu_error": nu.exponent_error,
                "kappa": law.kappa,
                "kappa_error": kappa.exponent_error,
                "Lambda": law.Lambda,
                "Q": law.Q,
                "zeta": law.zeta,
                "phase": phase(law),
                "lambda_crit": lambda_crit(spectrum),
            },
            arrays={
                "eigenvalues": spectrum.eigenvalues,
                "coefficients": spectrum.coefficients,
                "tails": tails / total,
            },
        )
        for batch in self.batches:
            gamma = noise_strength(batch, spectrum.samples)
            sgd = MiniBatchSGD(1.0, self.beta, gamma)
            critical = alpha_crit(sgd, spectrum).item()
            found.numbers[f"b_{batch}/alpha_crit"] = critical
            if law.nu > 1:
                half = MiniBatchSGD(critical / 2, self.beta, gamma)
                late = asymptotics(half, spectrum, law)
                found.numbers[f"b_{batch}/transition"] = late.transition

        def draw() -> Any:
            from lightning_ecd.theory.figures import spectrum_figure

            return spectrum_figure(spectrum, self.windows, self.index_from)

        found.figures["spectrum"] = draw
        return found
