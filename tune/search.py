"""A search: which hyper-parameters of which optimizers suit an experiment."""

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_ecd import studies
from lightning_ecd.checks import at_least
from lightning_ecd.cli import CommandLine
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import REGISTRY
from tune.constraints import Constraint, bind
from tune.job import Job, Resources
from tune.objectives import Fit, Trajectories
from tune.schedulers import Scheduler
from tune.searchers import STUDY, Random, Searcher
from tune.spaces import Space
from tune.trial import Mode

#: What is reported beside the metrics that a task declares.
_ALWAYS = (
    "train/loss",
    "train/epoch_loss",
    "train/evaluations",
    "train/effective_epochs",
    "epoch",
)


@dataclass
class Arm:
    """One of the optimizers that a search compares, each with its own trials.

    Attributes:
        optimizer: Name, import path or file of the optimizer; None: that of the arm's
            name, or the experiment's own if it is of that name; of a study the one
            that it has of that name.
        arguments: Further flags of the experiment or study.
        space: Hyper-parameter -> range; None: the ranges of the registry.
        published: The best hyper-parameters of a paper; they get a trial of their own.
        vary: The settings that take the seed when the best trial is repeated; None:
            see `Repeat`.
    """

    optimizer: str | None = None
    arguments: list[str] = field(default_factory=list)
    space: dict[str, Any] | None = None
    published: dict[str, Any] = field(default_factory=dict)
    vary: list[str] | None = None


@dataclass
class Repeat:
    """Further runs of every optimizer's best trial, compared by Welch's test.

    Attributes:
        seeds: One run for each.
        arguments: Further flags, such as a longer training.
        metric: What is compared; None: the metric of the search.
        vary: The settings that take the seed; None: seed_everything, data.seed and
            model.optimizer.seed where they exist; of a study its seed.
        against: repeats.csv of another search, to compare with.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    arguments: list[str] = field(default_factory=list)
    metric: str | None = None
    vary: list[str] | None = None
    against: str | None = None


class Search:
    """Trials of one or several optimizers on an experiment or a study.

    Args:
        metric: What to look at: for an experiment any metric of its task (a test
            metric only at the end of a trial), for a study a number of its summary.
        mode: "min" or "max".
        experiment: A file of configs/experiment, or any that `fit` takes; or
        study: a file of configs/study.
        arguments: Further flags of the experiment or study.
        optimizers: Name -> optimizer, each searched for itself with the same budget;
            None: the experiment's own.
        space: Hyper-parameter -> range, for all optimizers; replaces ranges of theirs;
            null takes one out. Short names are the optimizer's (``lr``), others are
            full (``data.batch_size``). A range is written ``LogUniform(1e-4, 1)``,
            ``Uniform(0, 1)``, ``Integers(1, 9)``, ``Decay(0, 10)`` or as a list.
        samples: Trials of each optimizer; a grid has as many as it has points.
        searcher: Which points are tried.
        scheduler: Which trials end early; null: none.
        constraint: Which points are not run, but told as infeasible; null: none.
        hours: After which the trials of an optimizer end; null: no limit.
        backend: "ray", many trials at a time; "local", one after the other in this
            process.
        resources: What a trial occupies, on Ray.
        concurrent: The most trials at a time, on Ray; null: as many as fit.
        address: Of a Ray cluster's head, ``host:port`` or "auto"; null: this machine.
        storage: Folder of all searches; every node of a cluster must see it.
        retries: How often a failed trial is begun again, from its checkpoint.
        stop_on_failure: Whether a trial that failed for good ends the search.
        checkpoint: Keep checkpoints of trials, which retries go on from.
        repeat: What becomes of the best trials; null: nothing.
    """

    def __init__(
        self,
        metric: str,
        mode: Mode,
        experiment: str | None = None,
        study: str | None = None,
        arguments: list[str] | None = None,
        optimizers: dict[str, Arm] | None = None,
        space: dict[str, Any] | None = None,
        samples: int = 20,
        searcher: Searcher | None = None,
        scheduler: Scheduler | None = None,
        constraint: Constraint | None = None,
        hours: float | None = None,
        backend: Literal["ray", "local"] = "ray",
        resources: Resources | None = None,
        concurrent: int | None = None,
        address: str | None = None,
        storage: str = "logs",
        retries: int = 2,
        stop_on_failure: bool = False,
        checkpoint: bool = True,
        repeat: Repeat | None = None,
    ):
        if (experiment is None) == (study is None):
            raise ValueError("name either an experiment or a study")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode!r}")
        if backend not in ("ray", "local"):
            raise ValueError(f"backend must be ray or local, got {backend!r}")
        for name in optimizers or {}:
            if not re.fullmatch(r"[\w.+-]+", name):  # it names a folder
                raise ValueError(
                    f"optimizers: {name!r} must be of letters, digits and . + - _"
                )
        at_least(1, samples=samples, concurrent=concurrent)
        at_least(0, retries=retries)
        if hours is not None and not 0 < hours < math.inf:
            raise ValueError(f"hours must be positive, got {hours}")
        if repeat is not None and not repeat.seeds:
            raise ValueError("repeat.seeds must name at least one")
        file = experiment or study
        if file is not None and not Path(file).is_file():
            raise ValueError(f"there is no file {file}")
        self.metric, self.mode = metric, mode
        self.experiment, self.study = experiment, study
        self.arguments, self.space = arguments or [], space or {}
        self.optimizers = optimizers or {}
        self.samples, self.hours, self.retries = samples, hours, retries
        self.searcher, self.scheduler = searcher or Random(), scheduler
        self.constraint = constraint
        self.backend, self.address = backend, address
        self.resources, self.concurrent = resources or Resources(), concurrent
        self.storage, self.stop_on_failure = storage, stop_on_failure
        self.checkpoint, self.repeat = checkpoint, repeat

    # -- settings of the trials ----------------------------------------------------

    def settings(self, more: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Return the settings of every optimizer's trials, before any range.

        Args:
            more: Further flags.
        """
        arms = self.optimizers or {self._own(): Arm()}
        return {name: self._settings(name, arm, more) for name, arm in arms.items()}

    def _settings(self, name: str, arm: Arm, more: Sequence[str]) -> dict[str, Any]:
        flags = [*self.arguments, *arm.arguments, *more]
        if self.study is not None:
            chosen = _added(name, arm.optimizer)
            return studies.read(["--config", self.study, *chosen, *flags])[0]
        optimizer = arm.optimizer
        if optimizer is None and name != self._own():
            if name not in REGISTRY:
                raise UserError(
                    f"optimizers: {name!r} is not registered; give optimizers.{name}."
                    f"optimizer, or one of {', '.join(REGISTRY)}"
                )
            optimizer = name
        chosen = [] if optimizer is None else [f"--model.optimizer={optimizer}"]
        return self._parsed([*self.arguments, *chosen, *flags[len(self.arguments) :]])

    def _parsed(self, flags: Sequence[str]) -> dict[str, Any]:
        args = ["--config", str(self.experiment), *flags]
        settings = CommandLine(args, run=False, folder=Path(self.storage)).dumped()
        settings.pop("config", None)
        return settings

    def _own(self) -> str:
        """Return the name of the experiment's own optimizer."""
        if self.study is not None:
            settings, _ = studies.read(["--config", self.study, *self.arguments])
            names = list(settings["optimizers"])
            if len(names) > 1:
                raise UserError(
                    f"optimizers: say which of the study's: {', '.join(names)}"
                )
            return names[0]
        optimizer = self._parsed(self.arguments)["model"]["init_args"]["optimizer"]
        return str(optimizer["class_path"]).rsplit(".", 1)[-1]

    # -- what the backends are to do -----------------------------------------------

    def jobs(self, settings: Mapping[str, dict[str, Any]]) -> dict[str, Job]:
        """Return the trials of every optimizer; refuse what cannot work.

        Args:
            settings: Of every optimizer.

        Raises:
            UserError: Naming the key that is wrong, and what is allowed.
        """
        jobs = {}
        for name, own in settings.items():
            space = self._space(name, own)
            objective = self.objective(name, own, self.metric)
            self.searcher.build(space, self.metric, self.mode)
            self._refuse_scheduler(space, objective)
            middle = space.at([0.5] * len(space.coordinates))
            self.refuse(objective, space.values(middle), self.metric)
            published = self.optimizers.get(name, Arm()).published
            objective.configured(published)
            check = None
            if self.constraint is not None:
                check = bind(self.constraint, objective, space)
            jobs[name] = Job(
                arm=name,
                objective=objective,
                space=space,
                metric=self.metric,
                mode=self.mode,
                samples=self.searcher.samples(space, self.samples),
                searcher=self.searcher,
                scheduler=self.scheduler,
                hours=self.hours,
                retries=self.retries,
                stop_on_failure=self.stop_on_failure,
                concurrent=self.concurrent,
                resources=self.resources,
                constraint=check,
            )
        return jobs

    def objective(
        self, name: str, settings: dict[str, Any], metric: str
    ) -> Fit | Trajectories:
        """Return what a trial of an optimizer runs."""
        if self.study is not None:
            return Trajectories(settings, name)
        on_ray = "gpu" if self.resources.gpus else "cpu"
        accelerator = on_ray if self.backend == "ray" else "auto"
        return Fit(settings, metric, self.checkpoint, accelerator)

    def _space(self, name: str, settings: dict[str, Any]) -> Space:
        arm = self.optimizers.get(name, Arm())
        ranges = arm.space
        if ranges is None:
            path = _optimizer_of(settings, name)
            entry = REGISTRY.get(path.rsplit(".", 1)[-1])
            ranges = dict(entry.ranges) if entry else {}
        ranges = {k: v for k, v in {**ranges, **self.space}.items() if v is not None}
        if not set(ranges) - {STUDY}:
            raise UserError(
                f"space: nothing to search for {name}: give space, such as "
                '--space.lr="LogUniform(1e-4, 1)"'
            )
        return Space(ranges)

    def _refuse_scheduler(self, space: Space, objective: Fit | Trajectories) -> None:
        if self.scheduler is None:
            return
        self.scheduler.build(space, self.metric, self.mode)
        if isinstance(objective, Trajectories) or objective.test:
            raise UserError(
                f"scheduler: {self.metric} is known only at the end of a trial; "
                "set scheduler to null, or search by a validation metric"
            )
        if self.scheduler.population:
            if self.constraint is not None:
                raise UserError(
                    "constraint must be null: a population changes hyper-parameters "
                    "while a trial runs"
                )
            _refuse_fixed(objective, space)

    def refuse(
        self,
        objective: Fit | Trajectories,
        values: Mapping[str, Any],
        metric: str,
    ) -> None:
        """Build a trial, to see that it can be run.

        Args:
            objective: What it runs.
            values: Hyper-parameters.
            metric: What it must report.

        Raises:
            UserError: If it cannot.
        """
        if isinstance(objective, Trajectories):
            study = studies.build(objective.configured(values))
            study.steps, study.record, study.random_starts = 1, 0, 0
            known = study.summary(study.run()[objective.arm])
            _refuse_metric(metric, [*known, "steps_to_target", "ratio"])
            return
        trainer = objective.settings["trainer"]
        for key, alone in (("devices", (1, "1", "auto")), ("num_nodes", (1,))):
            if trainer[key] not in alone:
                raise UserError(f"trainer.{key} must be 1: a trial is one process")
        with tempfile.TemporaryDirectory() as folder:
            # here may be no GPU, where trials run there is one
            line = objective.build(values, Path(folder), "cpu")
        names = getattr(line.model, "metric_names", None)
        if names is not None:
            tested = [name.replace("val/", "test/") for name in names]
            _refuse_metric(metric, [*names, *tested, *_ALWAYS])


def _refuse_metric(metric: str, known: Sequence[str]) -> None:
    if metric not in known:
        allowed = ", ".join(dict.fromkeys(known))
        raise UserError(f"metric: {metric} is not reported; reported are {allowed}")


def _added(name: str, optimizer: str | None) -> list[str]:
    """Return the flag that gives a study an optimizer of a name."""
    if optimizer is None:
        return []
    file = Path(optimizer)  # a study's optimizers are no files
    text = json.dumps(yaml.safe_load(file.read_text())) if file.is_file() else optimizer
    return [f"--optimizers.{name}={text}"]


def _optimizer_of(settings: Mapping[str, Any], name: str) -> str:
    """Return the class path of the optimizer of settings."""
    if "optimizers" in settings:
        found = settings["optimizers"].get(name, {})
    else:
        found = settings["model"]["init_args"].get("optimizer", {})
    return str(found.get("class_path", ""))


def _refuse_fixed(fit: Fit, space: Space) -> None:
    """Refuse what population-based training cannot change while a trial runs."""
    if not fit.checkpoint:
        raise UserError("checkpoint must be true: a population exchanges checkpoints")
    if fit.settings["model"]["init_args"].get("scheduler") is not None:
        raise UserError(
            "model.scheduler must be null: a population changes lr by itself"
        )
    fixed = [name for name in space.names if not fit.key(name).startswith("model.opt")]
    if fixed:
        raise UserError(
            f"space: {fixed[0]} cannot change while a trial runs, as a population "
            "needs; search only the optimizer's hyper-parameters"
        )
