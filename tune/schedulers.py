"""Which trials end early, or copy better ones.

Each builds a scheduler of Ray's and has the names of its arguments. Time counts
reports: a fit reports at the end of every epoch, and after every validation within.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from lightning_ecd.checks import at_least
from tune.spaces import Space
from tune.trial import INFEASIBLE


class Scheduler(ABC):
    """Ends or changes trials while they run."""

    #: Whether trials exchange checkpoints, which needs several at a time.
    population = False

    @abstractmethod
    def build(self, space: Space, metric: str, mode: str) -> TrialScheduler:
        """Return a new scheduler of Ray's.

        Args:
            space: Of the search.
            metric: What trials report.
            mode: "min" or "max".
        """


class ASHA(Scheduler):
    """Asynchronous successive halving.

    After grace_period, grace_period * reduction_factor, ... reports only the best
    1 / reduction_factor of the trials that came so far go on.

    Args:
        grace_period: Reports before a trial may be ended, at least 1.
        reduction_factor: At least 2.
        brackets: Searches with longer grace periods besides, at least 1.

    Reference:
        L. Li et al., A system for massively parallel hyperparameter tuning,
        MLSys 2020, arXiv:1810.05934.
    """

    def __init__(
        self, grace_period: int = 1, reduction_factor: int = 3, brackets: int = 1
    ):
        at_least(1, grace_period=grace_period, brackets=brackets)
        at_least(2, reduction_factor=reduction_factor)
        self.grace_period, self.reduction_factor = grace_period, reduction_factor
        self.brackets = brackets

    def build(self, space: Space, metric: str, mode: str) -> TrialScheduler:  # noqa: D102
        return _Halving(
            metric=metric,
            mode=mode,
            grace_period=self.grace_period,
            reduction_factor=self.reduction_factor,
            brackets=self.brackets,
            max_t=10**9,  # the experiment says how long a trial is
        )


class _Halving(ASHAScheduler):
    """Does not rank a trial that a constraint forbade: others would seem better.

    The median stopping rule, too, leaves out what is not finite.
    """

    def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
        if INFEASIBLE in result:
            return TrialScheduler.CONTINUE
        return super().on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: Any) -> None:
        if INFEASIBLE in result:
            self.on_trial_remove(controller, trial)
        else:
            super().on_trial_complete(controller, trial, result)


class MedianStopping(Scheduler):
    """Ends a trial whose best value is worse than the median of the running means.

    Args:
        grace_period: Reports before a trial may be ended, at least 1.
        min_samples_required: Trials to compare with, at least 1.

    Reference:
        D. Golovin et al., Google Vizier: a service for black-box optimization,
        KDD 2017.
    """

    def __init__(self, grace_period: int = 1, min_samples_required: int = 3):
        at_least(
            1, grace_period=grace_period, min_samples_required=min_samples_required
        )
        self.grace_period = grace_period
        self.min_samples_required = min_samples_required

    def build(self, space: Space, metric: str, mode: str) -> TrialScheduler:  # noqa: D102
        return MedianStoppingRule(
            time_attr="training_iteration",
            metric=metric,
            mode=mode,
            grace_period=self.grace_period,
            min_samples_required=self.min_samples_required,
            # never pause a trial: without a checkpoint it would begin again
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )


class PopulationBased(Scheduler):
    """Population-based training: bad trials go on from good ones, slightly changed.

    All samples are one population. A hyper-parameter of the worst quarter is drawn
    anew or multiplied by 0.8 or 1.2, and stays in its range. Only hyper-parameters
    that the optimizer reads from its groups at every step can change in a run.

    Args:
        perturbation_interval: Reports between changes, at least 1.
        resample_probability: Of drawing anew, in [0, 1].

    Reference:
        M. Jaderberg et al., Population based training of neural networks,
        arXiv:1711.09846.
    """

    population = True

    def __init__(
        self, perturbation_interval: int = 1, resample_probability: float = 0.25
    ):
        at_least(1, perturbation_interval=perturbation_interval)
        if not 0 <= resample_probability <= 1:
            raise ValueError(
                f"resample_probability must be in [0, 1], got {resample_probability}"
            )
        self.perturbation_interval = perturbation_interval
        self.resample_probability = resample_probability

    def build(self, space: Space, metric: str, mode: str) -> TrialScheduler:  # noqa: D102
        return PopulationBasedTraining(
            time_attr="training_iteration",
            metric=metric,
            mode=mode,
            perturbation_interval=self.perturbation_interval,
            resample_probability=self.resample_probability,
            hyperparam_mutations=space.domains(),
            custom_explore_fn=space.inside,
            require_attrs=False,
        )
