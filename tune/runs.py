"""Runs a search: trials, published settings, repeats, and what they leave behind."""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lightning_ecd import pool
from lightning_ecd.errors import UserError
from tune import cluster, figures, local, repeats, results
from tune.job import Job
from tune.live import Board
from tune.objectives import SEEDS, Fit, Seeded, Trajectories, has
from tune.repeats import Repeats
from tune.search import Search
from tune.searchers import Grid
from tune.spaces import Space
from tune.trial import Record

#: The search's own settings, and those of every optimizer's trials.
SEARCH, SETTINGS = "search.json", "settings.json"
#: Runs the trials of a job, in a folder.
_Start = Callable[[Job, Path], list[Record]]


@dataclass
class Outcome:
    """What came of a search.

    Attributes:
        folder: What it wrote.
        records: All trials.
        best: Optimizer -> its best trial.
        published: Optimizer -> the trial of the published hyper-parameters.
        repeats: The repeated best trials of every optimizer.
    """

    folder: Path
    records: list[Record] = field(default_factory=list)
    best: dict[str, Record] = field(default_factory=dict)
    published: dict[str, Record] = field(default_factory=dict)
    repeats: list[Repeats] = field(default_factory=list)


def run(
    search: Search,
    folder: Path,
    description: dict[str, Any] | None = None,
    strict: bool = True,
    draw: bool = True,
) -> Outcome:
    """Run a search, or what an interrupted one has left to do.

    Args:
        search: What to do.
        folder: Where to write; one that holds a search of the same settings goes on
            where that stopped.
        description: The search as plain data, from which it can be built again.
        strict: Whether an optimizer whose every trial failed is an error.
        draw: Whether to draw figures.

    Raises:
        UserError: If something cannot work; nothing has been started then.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    file = folder / SETTINGS
    if file.is_file():
        settings = json.loads(file.read_text())
    else:
        settings = {"trials": search.settings()}
        if search.repeat is not None:
            settings["repeats"] = search.settings(search.repeat.arguments)
    outcome = Outcome(folder)
    pool.open_()
    try:
        jobs = search.jobs(settings["trials"])
        again = _Again(search, settings["repeats"]) if search.repeat else None
        objectives: list[Any] = [job.objective for job in jobs.values()]
        objectives += again.objectives.values() if again else []
        start = _start(search, list(jobs.values()), objectives)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"storage: cannot write {folder}: {error}") from error
        if description is not None:
            keep(folder / SEARCH, description)
        keep(file, settings)
        for name, job in jobs.items():
            outcome.records += start(job, folder / name)
        for name, job in _published(search, jobs).items():
            outcome.published[name] = start(job, folder / f"{name}_published")[0]
        outcome.best = results.write(
            folder,
            outcome.records,
            {name: job.objective.configured for name, job in jobs.items()},  # type: ignore[attr-defined]
            search.metric,
            search.mode,
            outcome.published,
        )
        if draw:
            _draw(search, jobs, outcome)
        for name in jobs if strict else ():
            mine = [record for record in outcome.records if record.arm == name]
            for end, why in (("failed", "error"), ("infeasible", "reason")):
                if mine and all(record.status == end for record in mine):
                    last = getattr(mine[-1], why)
                    raise UserError(f"every trial of {name}: {end}, {last}; {folder}")
        if again is not None:
            outcome.repeats = again.run(outcome, start)
    finally:
        pool.close()
    return outcome


def keep(file: Path, content: Any) -> None:
    """Write a file, whole, unless it is there."""
    if not file.is_file():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(file)


def _start(
    search: Search, jobs: Sequence[Job], objectives: Sequence[Fit | Trajectories]
) -> _Start:
    """Make a backend ready, with all data that trials share; return what starts it."""
    readers = [fit.read_data for fit in objectives if isinstance(fit, Fit)]
    backend: Callable[..., list[Record]] = local.run
    if search.backend == "ray":
        cluster.connect(search.address)
        for job in jobs:
            cluster.refuse_too_much(job)
        backend = partial(cluster.run, sets=cluster.read(readers))
    else:
        for read in readers:
            read()

    def start(job: Job, folder: Path) -> list[Record]:
        with Board(job.arm, job.metric, job.mode, job.samples) as board:
            return backend(job, folder, board)

    return start


def _single(job: Job, name: str, space: Space) -> Job:
    """Return a job that tries every point of a small space once."""
    return replace(
        job,
        arm=name,
        space=space,
        samples=len(space.grid()),
        searcher=Grid(),
        scheduler=None,
        hours=None,
        constraint=None,
    )


def _published(search: Search, jobs: Mapping[str, Job]) -> dict[str, Job]:
    """Return one trial for every optimizer with published hyper-parameters."""
    found = {}
    for name, arm in search.optimizers.items():
        if arm.published:
            space = Space({key: [value] for key, value in arm.published.items()})
            found[name] = _single(jobs[name], f"{name}, published", space)
    return found


def _draw(search: Search, jobs: Mapping[str, Job], outcome: Outcome) -> None:
    """Write the figures, as files and for TensorBoard; one in memory at a time."""
    with SummaryWriter(str(outcome.folder)) as board:
        for name, figure in _figures(search, jobs, outcome.records):
            figure.savefig(outcome.folder / f"{name}.png", dpi=120)
            board.add_figure(name, figure)
            del figure
            gc.collect()  # figures are full of cycles


def _figures(
    search: Search, jobs: Mapping[str, Job], records: Sequence[Record]
) -> Iterator[tuple[str, Figure]]:
    metric, mode = search.metric, search.mode
    spaces = {name: job.space.coordinates for name, job in jobs.items()}
    yield "history", figures.history(records, metric, mode)
    for name, ranges in spaces.items():
        mine = [record for record in records if record.arm == name]
        yield f"parallel_{name}", figures.parallel(mine, ranges, metric, mode)
        yield f"slices_{name}", figures.slices(mine, ranges, metric, mode)
    if any("lr" in ranges for ranges in spaces.values()):
        yield "sensitivity", figures.sensitivity(records, spaces, metric, mode)


class _Again:
    """Runs the best trials again with other seeds, and compares them.

    Args:
        search: With a `repeat`.
        settings: Of every optimizer's repeats.

    Raises:
        UserError: If one of them cannot be run.
    """

    def __init__(self, search: Search, settings: Mapping[str, dict[str, Any]]):
        assert search.repeat is not None
        self.search, self.repeat = search, search.repeat
        self.metric = self.repeat.metric or search.metric
        against = self.repeat.against
        self.against = repeats.read(Path(against)) if against else []
        if self.against and self.metric not in {other.metric for other in self.against}:
            raise UserError(f"repeat.against: {against} has no runs of {self.metric}")
        self.objectives: dict[str, Fit | Trajectories] = {}
        self.keys: dict[str, tuple[str, ...]] = {}
        for name, own in settings.items():
            objective = search.objective(name, own, self.metric)
            self.keys[name] = keys = self._seeds(name, objective)
            seeds = dict.fromkeys(keys, self.repeat.seeds[0])
            search.refuse(objective, seeds, self.metric)
            self.objectives[name] = objective

    def _seeds(self, name: str, objective: Fit | Trajectories) -> tuple[str, ...]:
        """Return the settings that take the seed."""
        arm = self.search.optimizers.get(name)
        named = (arm and arm.vary) or self.repeat.vary
        if named:
            return tuple(named)
        if isinstance(objective, Trajectories):
            return ("seed",)
        return tuple(key for key in SEEDS if has(objective.settings, key))

    def run(self, outcome: Outcome, start: _Start) -> list[Repeats]:
        """Run them; write, show and return the table."""
        groups, runs = [], {}
        for name, best in outcome.best.items():
            job = Job(
                arm=f"{name}, repeated",
                objective=Seeded(self.objectives[name], best.values, self.keys[name]),
                space=Space({"seed": list(self.repeat.seeds)}),
                metric=self.metric,
                mode=self.search.mode,
                samples=len(self.repeat.seeds),
                searcher=Grid(),
                retries=self.search.retries,
                concurrent=self.search.concurrent,
                resources=self.search.resources,
            )
            records = start(job, outcome.folder / f"{name}_repeated")
            failed = [record for record in records if record.status == "failed"]
            if failed:
                raise UserError(
                    f"{job.arm}: seed {failed[0].values['seed']} failed: "
                    f"{failed[0].error}; go on by --restore {outcome.folder}"
                )
            seeds = tuple(record.values["seed"] for record in records)
            values = tuple(r.metrics.get(self.metric, math.nan) for r in records)
            groups.append(Repeats(name, self.metric, seeds, values))
            runs[name] = [Path(record.folder) for record in records]
        self._draw(runs, outcome.folder)
        repeats.write(outcome.folder, groups, self.against)
        repeats.show(groups, self.against)
        return groups

    def _draw(self, runs: Mapping[str, Sequence[Path]], folder: Path) -> None:
        """Draw loss and metric over the epochs, if fits have logged both."""
        over_epochs = self.metric.replace("test/", "val/")
        try:
            curves = figures.twin_curves(runs, "train/epoch_loss", over_epochs)
        except ValueError:
            return  # a study, or no validation
        curves.savefig(folder / "curves.png", dpi=120)
