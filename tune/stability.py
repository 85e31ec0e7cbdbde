"""The constraint that the theory of mini-batch SGD puts on a search."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_ecd.callbacks import Regimes
from lightning_ecd.callbacks.least_squares import (
    require_independent,
    require_plain_sgd,
    require_regression,
)
from lightning_ecd.checks import above
from lightning_ecd.errors import UserError
from lightning_ecd.predictions import problem_of
from lightning_ecd.theory import (
    Constant,
    MiniBatchSGD,
    alpha_crit,
    converges,
    modes_converge,
    noise_strength,
    total_noise,
)
from lightning_ecd.theory.problems import Problem
from tune.constraints import Constraint
from tune.objectives import Fit, Trajectories
from tune.spaces import Space

_WHO = "constraint: StabilityMask"


class StabilityMask(Constraint):
    r"""Leaves out the points where the mean loss of mini-batch SGD diverges.

    With learning rate α, momentum β and mini-batches of b among N samples a point is
    run if every mode by itself decays and the noise is not amplified,

    .. math::
        \frac{\alpha\lambda_{max}}{1 - \beta} \Big(\frac{1 - \beta}{1 + \beta} -
        \gamma\tau_2\Big) < 2, \qquad \tilde U(1) < 1, \qquad
        \gamma = \frac{N - b}{(N - 1)\, b}

    (`lightning_ecd.theory.converges`). α is lr where the experiment's callback
    `Regimes` normalises it, else lr times the kernel's λ_max/N. The spectrum is found
    once, at the start of the search.

    Args:
        problem: Whose spectrum; None: the tangent kernel of the experiment's network at
            its start, on the training samples.
        tau: τ2 <= 1, with τ1 = 1: 1 is exact for translation-invariant data, -1 for
            Gaussian features.
        memory: GiB that the kernel and its eigenvectors may take.

    Note:
        It speaks of `modules.Regression` trained by SGD or HeavyBall at constant rates
        on independent mini-batches. A network that leaves its linearisation may survive
        beyond the region.

    Reference:
        M. Velikanov, D. Kuznedelev, D. Yarotsky, ICLR 2023, arXiv 2206.11124.
    """

    keys = ("lr", "momentum", "data.batch_size")

    def __init__(
        self, problem: Problem | None = None, tau: float = 1.0, memory: float = 4.0
    ):
        if not tau <= 1:
            raise ValueError(f"tau must be at most 1, got {tau}")
        above(0, memory=memory)
        self.problem, self.tau, self.memory = problem, tau, memory

    def begin(self, objective: Fit | Trajectories, space: Space) -> None:
        """Find the spectrum, and what lr is to be multiplied by."""
        if not isinstance(objective, Fit):
            raise UserError(f"{_WHO} needs an experiment: a study has no mini-batches")
        self._refuse_other(objective.settings["model"]["init_args"])
        harmless = {*map(objective.key, self.keys), "data.seed", "data.steps_per_epoch"}
        for name in space.names:
            full = objective.key(name)
            if full not in harmless and not full.startswith("trainer."):
                raise UserError(
                    f"{_WHO} holds for one kernel and plain SGD: {name} cannot be "
                    "searched; null in space takes it out"
                )
        with tempfile.TemporaryDirectory() as folder:
            line = objective.build({}, Path(folder), "cpu")
        require_regression(line.model, _WHO)
        trainer: Any = line.trainer
        require_independent(trainer, line.datamodule, _WHO)
        beside = [c for c in trainer.callbacks if isinstance(c, Regimes)]
        if any(not isinstance(callback.rates, Constant) for callback in beside):
            raise UserError(f"{_WHO} needs constant rates: drop rates of Regimes")
        problem = self.problem or problem_of(line, memory=self.memory * 2**30)
        self.problem = None  # workers need no kernel
        self.spectrum = problem.spectrum()
        normalised = any(callback.normalize_lr for callback in beside)
        self.factor = 1.0 if normalised else self.spectrum.scale

    def forbids(self, values: Mapping[str, Any]) -> str | None:
        """Return which condition fails, and the learning rate where it begins to."""
        lr, beta, b = (values[key] for key in self.keys)
        N = self.spectrum.samples
        if not (lr > 0 and -1 < beta < 1 and 1 <= b <= N):
            return f"not in lr > 0, -1 < momentum < 1, 1 <= data.batch_size <= {N}"
        gamma = noise_strength(b, N)
        sgd = MiniBatchSGD(lr * self.factor, beta, gamma, 1.0, self.tau)
        if converges(sgd, self.spectrum):
            return None
        why = "a mode by itself diverges"
        if modes_converge(sgd, self.spectrum):
            why = f"U(1) = {total_noise(sgd, self.spectrum).item():.3g} is not below 1"
        critical = alpha_crit(sgd, self.spectrum).item() / self.factor
        return f"{why}: lr must be below {critical:.4g}"

    def _refuse_other(self, model: Mapping[str, Any]) -> None:
        """Refuse what is not SGD with momentum at constant rates."""
        if model.get("scheduler") is not None:
            raise UserError(f"{_WHO} needs constant rates: set model.scheduler to null")
        optimizer, groups = model["optimizer"], model.get("groups") or {}
        name = optimizer["class_path"].rsplit(".", 1)[-1]
        require_plain_sgd(name, optimizer["init_args"], 1 + len(groups), _WHO)
