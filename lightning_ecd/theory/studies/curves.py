"""Curves: regimes side by side, budgets of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ecd.checks import at_least
from lightning_ecd.randomness import subsets
from lightning_ecd.theory.companions import Companions
from lightning_ecd.theory.generating import (
    MiniBatchSGD,
    noise_strength,
    talbot_loss,
    total_noise,
)
from lightning_ecd.theory.problems import Problem
from lightning_ecd.theory.schedules import Constant, Rates, log_spaced, schedule
from lightning_ecd.theory.spectrum import Spectrum
from lightning_ecd.theory.stability import converges
from lightning_ecd.theory.studies.study import Findings, Progress, TheoryStudy

_BATCH_STREAM = 0x5247


class RegimeCurves(TheoryStudy):
    """Regimes side by side over the steps, for lists of settings.

    Args:
        alpha: Learning rates.
        beta: Momenta.
        batch: Sizes of the mini-batches.
        combine: "product" of the lists, or "zip": all of one length, or of length 1.
        steps: T.
        rates: What becomes of α and β over the steps.
        runs: Sampled runs; 0: none.
        rank: Of the averaged regime; None: exact; 0: without it.
        taus: Of the diagonal regime.
        points: Steps with values, about.
        seed: Of the mini-batches.
        memory: GiB that matrices of samples x samples may take.
    """

    def __init__(
        self,
        alpha: Sequence[float] = (1.0,),
        beta: Sequence[float] = (0.0,),
        batch: Sequence[int] = (10,),
        combine: Literal["product", "zip"] = "product",
        steps: int = 10_000,
        rates: Rates | None = None,
        runs: int = 1,
        rank: int | None = 100,
        taus: Sequence[float] = (1.0, -1.0),
        points: int = 100,
        seed: int = 0,
        memory: float = 4.0,
    ):
        at_least(1, steps=steps, points=points, batch=min(batch, default=0))
        self.settings = combined(combine, alpha=alpha, beta=beta, batch=batch)
        self.steps, self.rates, self.runs = steps, rates or Constant(), runs
        self.rank, self.taus, self.points = rank, list(taus), points
        self.seed, self.memory = seed, memory

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        samples, memory = problem.spectrum().samples, self.memory * 2**30
        Companions.require_room(samples, self.rank, memory)
        K, d = problem.kernel()
        at = [0, *log_spaced(self.steps, self.points)]
        found = Findings(arrays={"step": torch.tensor(at)})
        sides = Companions(K, d, self.rank, self.taus, memory)
        for i, (alpha, beta, batch) in enumerate(self.settings):
            name = f"alpha_{alpha:g}_beta_{beta:g}_b_{batch}"
            courses = schedule(self.steps, *self.rates(self.steps, alpha, beta), batch)
            sides.begin(courses, self._draw(len(d), int(batch)), self.runs)
            curves: dict[str, list[Tensor]] = {}
            for step in at:
                progress(name, (i + step / self.steps) / len(self.settings))
                for regime, losses in sides.advance(step).items():
                    curves.setdefault(regime, []).append(losses)
            tables = {regime: torch.stack(rows) for regime, rows in curves.items()}
            for regime, table in tables.items():
                found.arrays[f"{name}/{regime}"] = table
                found.numbers[f"{name}/{regime}"] = table[-1].mean().item()
            found.figures[name] = _RegimesFigure(at, tables, sides.spectrum, name)
        return found

    def _draw(self, samples: int, batch: int) -> Callable[[int], Tensor]:
        def draw(step: int) -> Tensor:
            return subsets(self.runs, batch, samples, self.seed, _BATCH_STREAM, step)

        return draw


@dataclass
class _RegimesFigure:
    """Draws the curves of one setting."""

    steps: list[int]
    tables: dict[str, Tensor]
    spectrum: Spectrum
    title: str

    def __call__(self) -> Any:
        from lightning_ecd.theory.figures import as_curve, regimes

        curves = {name: as_curve(self.steps, t) for name, t in self.tables.items()}
        return regimes(curves, self.spectrum, self.title)


def combined(
    how: Literal["product", "zip"], **lists: Sequence[float]
) -> list[tuple[Any, ...]]:
    """Return the settings of lists: all combinations, or the lists side by side."""
    if how not in ("product", "zip"):
        raise ValueError(f"combine must be product or zip, got {how!r}")
    if how == "product":
        return list(product(*lists.values()))
    length = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, length):
            raise ValueError(
                f"{name} must have 1 or {length} values with combine=zip, got "
                f"{len(values)}"
            )
    rows = [list(v) * (length if len(v) == 1 else 1) for v in lists.values()]
    return list(zip(*rows, strict=True))


class Budget(TheoryStudy):
    """Losses over the samples seen, with learning rates proportional to the batch.

    In the signal-dominated phase they depend on t b alone.

    Args:
        batches: Sizes of the mini-batches.
        rate: α_eff/b.
        beta: β.
        samples: The most samples seen, t b.
        tau: τ.
    """

    def __init__(
        self,
        batches: Sequence[int] = (1, 3, 10, 30, 100),
        rate: float = 0.01,
        beta: float = 0.0,
        samples: int = 1_000_000,
        tau: float = 1.0,
    ):
        at_least(1, batches=min(batches, default=0), samples=samples)
        self.batches, self.rate, self.beta = list(batches), rate, beta
        self.samples, self.tau = samples, tau

    def run(self, problem: Problem, progress: Progress) -> Findings:  # noqa: D102
        spectrum = problem.spectrum()
        found = Findings()
        curves: dict[str, tuple[list[float], list[float], None]] = {}
        for i, batch in enumerate(self.batches):
            progress(f"b = {batch}", i / len(self.batches))
            steps = self.samples // batch
            sgd = MiniBatchSGD(
                self.rate * batch * (1 - self.beta),
                self.beta,
                noise_strength(batch, spectrum.samples),
                1.0,
                self.tau,
            )
            name = f"b_{batch}"
            if not converges(sgd, spectrum):
                found.numbers[f"{name}/U(1)"] = total_noise(sgd, spectrum).item()
                continue
            t = torch.logspace(2, torch.tensor(float(steps)).log10().item(), 60)
            t = t.double().round()
            losses = talbot_loss(sgd, spectrum, t) / spectrum.loss
            found.arrays |= {f"{name}/seen": t * batch, f"{name}/loss": losses}
            found.numbers[f"{name}/loss"] = losses[-1].item()
            curves[f"b = {batch}"] = ((t * batch).tolist(), losses.tolist(), None)

        def draw() -> Any:
            from lightning_ecd.theory.figures import regimes

            figure = regimes(curves)
            figure.axes[0].set(xlabel="samples seen", ylabel="loss / loss at the start")
            return figure

        found.figures["budget"] = draw
        return found
