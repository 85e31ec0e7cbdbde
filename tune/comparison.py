"""A comparison: the same trials of every optimizer on every task, at one price."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning_ecd.checks import above, at_least, one_of
from lightning_ecd.optimizers import REGISTRY
from tune.job import Resources
from tune.objectives import SEEDS, Fit, Trajectories, has, overridden
from tune.search import Arm, Search
from tune.searchers import STUDY, Studies
from tune.trial import Mode, Trial


@dataclass
class Contest:
    """A task that optimizers are compared on.

    Attributes:
        experiment: A file of configs/experiment, or any that `fit` takes; its
            optimizer does not matter.
        metric: Of the validations: ``val/...``.
        mode: "min" or "max".
        evaluations: Of the gradient, that a trial may cost.
        seconds: Of training, likewise; null: no limit.
        every: Evaluations between validations; null: a twentieth of `evaluations`.
        arguments: Further flags of the experiment, for all optimizers.
    """

    experiment: str
    metric: str = "val/accuracy"
    mode: Mode = "max"
    evaluations: int = 1000
    seconds: float | None = None
    every: int | None = None
    arguments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        one_of(("min", "max"), mode=self.mode)
        if not self.metric.startswith("val/"):
            raise ValueError(
                f"metric must be one of the validations, val/..., got {self.metric!r}"
            )
        at_least(1, evaluations=self.evaluations, every=self.every)
        above(0, seconds=self.seconds)

    def flags(self) -> list[str]:
        """Return the flags that set the price of a trial."""
        every = self.every or max(1, self.evaluations // 20)
        budget = [f"evaluations={self.evaluations}", f"every={every}"]
        if self.seconds is not None:
            budget.append(f"seconds={self.seconds}")
        return [
            *self.arguments,
            *("--trainer.max_epochs=-1", "--trainer.max_steps=-1"),
            "--trainer.callbacks+=lightning_ecd.callbacks.Budget",
            *(f"--trainer.callbacks.{part}" for part in budget),
        ]


class Comparison:
    """Tasks x optimizers x studies x trials, after the rules of AlgoPerf.

    A study is a few trials at quasi-random points of the optimizer's search space,
    which is ONE for all tasks; of a study only its best trial counts, as for a user
    who tunes with so many trials. Studies have other points, and other seeds of
    network, data and optimizer; the s-th of all optimizers have the same.

    A task's target is what a tuned baseline reaches: of every baseline, the median
    over its studies of the best value that its best trial reached within `share` of
    the evaluations; the better of them.

    Args:
        tasks: Name -> task.
        optimizers: Name -> optimizer with its space; see `Arm`. Whatever is not given
            is the optimizer's default: settings of the tasks' experiments never count.
        baselines: Optimizers that set the targets; null: SGD and AdamW, those of them
            that are compared.
        trials: Of a study.
        studies: Of an optimizer on a task.
        share: Of the evaluations, in (0, 1], that the baselines have for the target.
        backend: "local", one trial after the other in this process; "ray", many at a
            time.
        resources: What a trial occupies, on Ray.
        concurrent: The most trials at a time, on Ray; null: as many as fit.
        address: Of a Ray cluster's head; null: this machine.
        storage: Folder of all comparisons.
        retries: How often a failed trial is begun again.

    Reference:
        G. E. Dahl et al., "Benchmarking neural network training algorithms",
        arXiv:2306.07179 (AlgoPerf).
    """

    def __init__(
        self,
        tasks: dict[str, Contest],
        optimizers: dict[str, Arm],
        baselines: list[str] | None = None,
        trials: int = 5,
        studies: int = 3,
        share: float = 0.75,
        backend: Literal["ray", "local"] = "local",
        resources: Resources | None = None,
        concurrent: int | None = None,
        address: str | None = None,
        storage: str = "logs",
        retries: int = 0,
    ):
        at_least(1, trials=trials, studies=studies, tasks=len(tasks))
        at_least(2, optimizers=len(optimizers))
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        if baselines is None:
            baselines = self.usual_baselines(optimizers)
        one_of(optimizers, **{f"baselines[{i}]": b for i, b in enumerate(baselines)})
        if not baselines:
            raise ValueError("baselines must name at least one of the optimizers")
        for name in tasks:
            if not re.fullmatch(r"[\w.+-]+", name):  # it names a folder
                raise ValueError(
                    f"tasks: {name!r} must be of letters, digits and . + - _"
                )
        arms = {name: _explicit(name, arm) for name, arm in optimizers.items()}
        self.tasks, self.optimizers, self.baselines = tasks, optimizers, baselines
        self.trials, self.studies, self.share = trials, studies, share
        self.searches = {
            name: _TaskSearch(
                metric=task.metric,
                mode=task.mode,
                experiment=task.experiment,
                arguments=task.flags(),
                optimizers=arms,
                space={STUDY: list(range(studies))},
                searcher=Studies(trials, studies),
                backend=backend,
                resources=resources,
                concurrent=concurrent,
                address=address,
                storage=storage,
                retries=retries,
                checkpoint=False,
            )
            for name, task in tasks.items()
        }

    @staticmethod
    def usual_baselines(optimizers: Iterable[str]) -> list[str]:
        """Return SGD and AdamW, those of them that are compared."""
        return [name for name in optimizers if name in ("SGD", "AdamW")]


def _explicit(name: str, arm: Arm) -> Arm:
    """Return an arm that names its optimizer.

    Otherwise an experiment of that optimizer would lend it settings of its own.
    """
    if arm.published or arm.vary:
        raise ValueError(f"optimizers.{name}: published and vary belong to a search")
    if arm.optimizer is None and name not in REGISTRY:
        raise ValueError(
            f"optimizers: {name!r} is not registered; give "
            f"optimizers.{name}.optimizer, or one of {', '.join(REGISTRY)}"
        )
    return replace(arm, optimizer=arm.optimizer or name)


class _TaskSearch(Search):
    """The search of one task."""

    def objective(
        self, name: str, settings: dict[str, Any], metric: str
    ) -> Fit | Trajectories:
        fit = super().objective(name, settings, metric)
        assert isinstance(fit, Fit)
        return _Entry(fit.settings, metric, False, fit.accelerator)


class _Entry(Fit):
    """A fit whose seeds are those of its study."""

    def __call__(self, trial: Trial) -> None:
        """Run a trial; epochs may be shorter than the logging interval."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The number of training batches")
            super().__call__(trial)

    def configured(self, values: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: value for key, value in values.items() if key != STUDY}
        settings = super().configured(own)
        if STUDY in values:
            seeds = {key: values[STUDY] for key in SEEDS if has(settings, key)}
            settings = overridden(settings, seeds)
        return settings
