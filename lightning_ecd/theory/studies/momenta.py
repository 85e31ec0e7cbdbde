"""Best momenta of power laws."""

from collections.abc import Sequence
from typing import Any

import torch

from lightning_ecd.checks import at_least
from lightning_ecd.theory.generating import MiniBatchSGD, noise_strength, talbot_loss
from lightning_ecd.theory.momentum import best_rate, momentum_slope, optimum
from lightning_ecd.theory.problems import Problem, grid
from lightning_ecd.theory.spectrum import from_power_law
from lightning_ecd.theory.stability import converges
from lightning_ecd.theory.studies.study import Findings, Progress, TheoryStudy


class BestMomentum(TheoryStudy):
    """Best learning rates and momenta of power laws.

    Args:
        laws: Pairs (ν, κ), or (ν, κ, α) to hold α at a value instead of the best one
            at β = 0.
        samples: N; long spectra are gathered in bins.
        steps: t.
        batch: b.
        clamp: c_1, ..., c_clamp are all made c_clamp; 0: none.
        beta: Lowest, highest and number of momenta drawn.
    """

    needs_problem = False

    def __init__(
        self,
        laws: Sequence[tuple[float, ...]] = ((1.5, 3.0), (1.5, 4.0)),
        samples: int = 10_000,
        steps: int = 10_000,
        batch: int = 1,
        clamp: int = 0,
        beta: tuple[float, float, int] = (-0.3, 0.3, 61),
    ):
        at_least(1, samples=samples, steps=steps, batch=batch)
        for law in laws:
            if len(law) not in (2, 3):
                raise ValueError(f"laws must be [nu, kappa] or [.., alpha], got {law}")
        self.laws, self.samples, self.steps = list(laws), samples, steps
        self.batch, self.clamp, self.beta = batch, clamp, grid(*beta)

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        found = Findings(arrays={"beta": self.beta})
        gamma, t = noise_strength(self.batch, self.samples), float(self.steps)
        rows = {}
        for i, (nu, kappa, *rate) in enumerate(self.laws):
            name = f"nu_{nu:g}_kappa_{kappa:g}"
            progress(name, i / len(self.laws))
            spectrum = from_power_law(nu, kappa, self.samples)
            spectrum = spectrum.clamped(self.clamp) if self.clamp else spectrum
            spectrum = spectrum.binned(10_000, 200)
            start = MiniBatchSGD(best_rate(spectrum, nu), 0.0, gamma)
            best = optimum(start, spectrum, t, fixed=("beta",))
            alpha = rate[0] if rate else best.alpha
            held = MiniBatchSGD(alpha, 0.0, gamma)
            momentum = optimum(held, spectrum, t, fixed=("alpha",), span=0.9)
            joint = optimum(MiniBatchSGD(alpha, -0.05, gamma), spectrum, t)
            losses = talbot_loss(MiniBatchSGD(alpha, self.beta, gamma), spectrum, t)
            rates = alpha * torch.logspace(-1, 1, 80, base=2.0, dtype=torch.float64)
            swept = MiniBatchSGD(rates, 0.0, gamma)
            over = torch.where(
                converges(swept, spectrum), talbot_loss(swept, spectrum, t), torch.nan
            )
            rows[name] = (rates, over, self.beta, losses)
            found.arrays |= {f"{name}/loss": losses, f"{name}/alpha": rates}
            found.numbers |= {
                f"{name}/alpha": best.alpha,
                f"{name}/log_loss": torch.tensor(best.loss).log().item(),
                f"{name}/beta": momentum.beta,
                f"{name}/joint_alpha": joint.alpha,
                f"{name}/joint_beta": joint.beta,
                f"{name}/gain_percent": 100 * (best.loss / joint.loss - 1),
                f"{name}/slope": momentum_slope(held, spectrum).item(),
            }

        def draw() -> Any:
            from lightning_ecd.theory.figures import momentum_figure

            return momentum_figure(rows)

        found.figures["momentum"] = draw
        return found
