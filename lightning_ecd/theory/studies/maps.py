"""Maps: the loss over learning rate and momentum, phases over exponents."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_ecd.checks import at_least, one_of
from lightning_ecd.theory.generating import MiniBatchSGD, noise_strength, talbot_loss
from lightning_ecd.theory.momentum import gain_map
from lightning_ecd.theory.problems import Problem, grid
from lightning_ecd.theory.regimes import Modes, spectral_diagonal
from lightning_ecd.theory.schedules import Schedule
from lightning_ecd.theory.spectrum import Spectrum
from lightning_ecd.theory.stability import alpha_crit, converges, lambda_crit
from lightning_ecd.theory.studies.linearized import linearized_map, smoothed
from lightning_ecd.theory.studies.study import Findings, Progress, TheoryStudy

Regime = Literal["diagonal", "linearized"]

#: Losses of the inversion below this share of the first have no digits left.
_RESOLUTION = 1e-13


class LossMap(TheoryStudy):
    """The loss after some steps over learning rate and momentum.

    Args:
        batches: Sizes of the mini-batches, a map for each; 0: the whole set.
        steps: t.
        alpha: Lowest, highest and number of learning rates; 0 itself is left out.
        beta: Likewise of momenta; -1 and 1 are left out.
        tau: τ of the diagonal regime.
        regime: "diagonal", in closed form; or "linearized": a sampled run for every
            cell, all with the same mini-batches, which takes minutes.
        smooth: σ in cells of a Gaussian that smooths the logarithm of the losses
            before the lowest are looked for; 0: none. For sampled runs.
        seed: Of the mini-batches of sampled runs.
    """

    def __init__(
        self,
        batches: Sequence[int] = (1, 10, 100),
        steps: int = 10_000,
        alpha: tuple[float, float, int] = (0.0, 4.0, 100),
        beta: tuple[float, float, int] = (-1.0, 1.0, 50),
        tau: float = 1.0,
        regime: Regime = "diagonal",
        smooth: float = 0.0,
        seed: int = 0,
    ):
        at_least(1, steps=steps)
        at_least(0, batches=min(batches, default=-1), smooth=smooth)
        one_of(get_args(Regime), regime=regime)
        self.batches, self.steps, self.tau = list(batches), steps, tau
        self.regime, self.smooth, self.seed = regime, smooth, seed
        self.alpha, self.beta = grid(*alpha), grid(*beta)

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        spectrum = problem.spectrum()
        N = spectrum.samples
        found = Findings(arrays={"alpha": self.alpha, "beta": self.beta})
        panels = []
        for i, batch in enumerate(self.batches):
            size = batch or N
            within = self._part(progress, i, size)
            within(0.0)
            losses = self._losses(problem, spectrum, size, within)
            found.arrays[f"loss_{size}"] = losses
            lowest = smoothed(losses, self.smooth) if self.smooth else losses
            found.numbers |= self._best(lowest, size)
            gamma = noise_strength(size, N)
            inner = grid(-0.995, 0.995, 400)
            sgd = MiniBatchSGD(1.0, inner, gamma, 1.0, self.tau)
            border = alpha_crit(sgd, spectrum)
            tip = border.argmax()
            found.numbers[f"b_{size}/border"] = border[tip].item()
            found.numbers[f"b_{size}/border_beta"] = inner[tip].item()
            panels.append((size, losses, inner, border, gamma))
        critical = lambda_crit(spectrum, 1.0, self.tau)
        found.numbers["lambda_crit"] = critical

        def draw() -> Any:
            from lightning_ecd.theory.figures import loss_maps

            return loss_maps(self.alpha, self.beta, panels, critical, self.steps)

        found.figures["loss_map"] = draw
        return found

    def _part(self, progress: Progress, i: int, size: int) -> Callable[[float], None]:
        """Return what is told the share of the i-th map that is done."""
        return lambda share: progress(f"b = {size}", (i + share) / len(self.batches))

    def _losses(
        self,
        problem: Problem,
        spectrum: Spectrum,
        batch: int,
        progress: Callable[[float], None],
    ) -> Tensor:
        """Return the map of a batch size in the regime asked for."""
        at = self.alpha, self.beta, batch, self.steps
        if self.regime == "diagonal":
            return loss_map(spectrum, *at, self.tau)
        K, d = problem.kernel()
        return linearized_map(K, d, *at, self.seed, progress)

    def _best(self, losses: Tensor, size: int) -> dict[str, Any]:
        """Return the lowest loss and the local minima."""
        i, j = divmod(int(losses.argmin()), losses.shape[1])
        minima = [
            {
                "index": [a, b],
                "alpha": self.alpha[a].item(),
                "beta": self.beta[b].item(),
                "loss": losses[a, b].item(),
            }
            for a, b in local_minima(losses)
        ]
        return {
            f"b_{size}/index": [i, j],
            f"b_{size}/alpha": self.alpha[i].item(),
            f"b_{size}/beta": self.beta[j].item(),
            f"b_{size}/log_loss": losses[i, j].log().item(),
            f"b_{size}/local_minima": minima,
        }


def loss_map(
    spectrum: Spectrum,
    alpha: Tensor,
    beta: Tensor,
    batch: int,
    steps: int,
    tau: float = 1.0,
) -> Tensor:
    """Return the loss after some steps, (A, B); inf where it diverges.

    Losses below 1e-13 of the first, which the inversion does not resolve, are that.

    Args:
        spectrum: The problem.
        alpha: Learning rates, (A,).
        beta: Momenta, (B,).
        batch: b.
        steps: t; at least 100 for the inversion, else the recursion is run.
        tau: τ.
    """
    A, B = torch.meshgrid(alpha, beta, indexing="ij")
    gamma = noise_strength(batch, spectrum.samples)
    inside = (A > 0) & (B.abs() < 1)
    sgd = MiniBatchSGD(A[inside], B[inside], gamma, 1.0, tau)
    stable = converges(sgd, spectrum)
    chosen = MiniBatchSGD(A[inside][stable], B[inside][stable], gamma, 1.0, tau)
    if steps >= 100:
        values = talbot_loss(chosen, spectrum, float(steps))
    else:
        rows = (chosen.alpha.expand(steps, -1), chosen.beta.expand(steps, -1))  # type: ignore[union-attr]
        rates = Schedule(*rows, torch.full_like(rows[0], batch).long())
        state = Modes.start(spectrum, len(rows[0][0]))
        values = spectral_diagonal(spectrum, state, rates, steps, tau2=tau)[1][-1]
    losses = torch.full_like(A, torch.inf)
    losses[inside] = torch.full_like(A[inside], torch.inf).masked_scatter(
        stable, values.clamp_min(_RESOLUTION * spectrum.loss)
    )
    return losses


def local_minima(losses: Tensor) -> list[tuple[int, int]]:
    """Return the cells (i, j) that are the least of their 3 x 3 neighbours."""
    padded = torch.nn.functional.pad(losses, (1, 1, 1, 1), value=torch.inf)
    lowest = padded.unfold(0, 3, 1).unfold(1, 3, 1).amin((2, 3))
    cells = (losses == lowest) & losses.isfinite()
    return [(int(i), int(j)) for i, j in cells.nonzero()]


class GainMap(TheoryStudy):
    """Where a negative momentum helps, over the exponents of power laws.

    Args:
        nu: Lowest, highest and number of ν; above 1.
        kappa: Likewise of κ.
        samples: N.
    """

    needs_problem = False

    def __init__(
        self,
        nu: tuple[float, float, int] = (1.0, 3.0, 200),
        kappa: tuple[float, float, int] = (0.0, 6.0, 200),
        samples: int = 1000,
    ):
        at_least(1, samples=samples)
        self.nu, self.kappa, self.samples = grid(*nu), grid(*kappa), samples

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        gain = gain_map(self.nu, self.kappa, self.samples)
        found = Findings(arrays={"nu": self.nu, "kappa": self.kappa, "gain": gain})
        for nu in (1.5, 2.0, 3.0):
            if self.nu[0] <= nu <= self.nu[-1]:
                row = gain[(self.nu - nu).abs().argmin()]
                helps = self.kappa[row > 0]
                found.numbers[f"nu_{nu:g}/border"] = (
                    helps[0].item() if len(helps) else torch.nan
                )

        def draw() -> Any:
            from lightning_ecd.theory.figures import gain_figure

            return gain_figure(self.nu, self.kappa, gain)

        found.figures["negative_momentum"] = draw
        return found
