"""A trial: one run of an objective, and what it tells its search."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning_ecd.errors import Diverged, UserError

Mode = Literal["min", "max"]
#: Writes a checkpoint into a folder.
Save = Callable[[Path], None]
#: How a trial ended: by itself, by the scheduler, by a loss that is not finite, before
#: it began by a constraint, by an error; "running" is also what an interrupted search
#: leaves.
Status = Literal["completed", "stopped", "diverged", "infeasible", "failed", "running"]

#: Keys of reports beside the metrics; the last one says why.
FINISHED, DIVERGED, INFEASIBLE = "finished", "diverged", "infeasible"
CLOCK = ("training_iteration", "time_total_s")


class Stopped(Exception):
    """The scheduler ends a trial: raised by `Trial.report`."""


class Trial(ABC):
    """One run of an objective.

    Args:
        number: Of the trial within its search, from 0.
        values: The hyper-parameters, by name.
        folder: Where the trial writes; it exists.
        metric: What the search looks at.
        mode: "min" or "max".
        checkpoint: Folder that the trial goes on from, as `save` of `report` wrote it;
            None: it starts afresh.
        population: Whether the checkpoint may be that of another trial, whose
            hyper-parameters the trial's own replace.

    Attributes:
        reports: How many there were; a trial that goes on from a checkpoint sets it.
    """

    def __init__(
        self,
        number: int,
        values: dict[str, Any],
        folder: Path,
        metric: str,
        mode: Mode,
        checkpoint: Path | None = None,
        population: bool = False,
    ):
        self.number, self.values, self.folder = number, values, folder
        self.metric, self.mode = metric, mode
        self.checkpoint, self.population = checkpoint, population
        self.reports = 0
        self._last: dict[str, Any] = {}

    def report(
        self,
        metrics: Mapping[str, float],
        save: Save | None = None,
        finished: bool = False,
    ) -> None:
        """Tell the search how the trial is doing.

        Args:
            metrics: Numbers by name, the search's metric among them.
            save: Writes what the trial would go on from.
            finished: Whether this is the end.

        Raises:
            Stopped: If the scheduler ends the trial here.
            Diverged: If the metric is not a number.
            UserError: If the metric is missing.
        """
        if self.metric not in metrics:
            raise UserError(
                f"metric: the trial reports no {self.metric}; it reports "
                + ", ".join(sorted(metrics))
            )
        if not math.isfinite(metrics[self.metric]):
            raise Diverged(f"{self.metric} is {metrics[self.metric]}")
        flags = {FINISHED: True} if finished else {}
        self._tell({**metrics, **flags}, save)

    def diverge(self) -> None:
        """Tell the search that the trial has diverged: the worst value there is."""
        self._end_at_worst({DIVERGED: True})

    def refuse(self, reason: str) -> None:
        """Tell the search that a constraint forbids the trial: nothing was run."""
        self._end_at_worst({INFEASIBLE: reason})

    def _end_at_worst(self, why: dict[str, Any]) -> None:
        worst = math.inf if self.mode == "min" else -math.inf
        self._tell({self.metric: worst, **why, FINISHED: True}, None)

    def _tell(self, report: dict[str, Any], save: Save | None) -> None:
        self.reports += 1
        self._last = report
        self._deliver(report, save)

    @abstractmethod
    def _deliver(self, metrics: dict[str, Any], save: Save | None) -> None:
        """Hand a report to the backend, which may raise `Stopped`."""


#: What a search calls for each trial; it reports at least once.
Objective = Callable[[Trial], None]
#: Hyper-parameters by name -> why they are not run; None: they are.
Check = Callable[[Mapping[str, Any]], str | None]


def attempt(objective: Objective, trial: Trial, constraint: Check | None) -> None:
    """Run a trial that its constraint allows; divergence is a result like any other.

    Raises:
        UserError: If there was no last report.
    """
    reason = constraint and constraint(trial.values)
    if reason:
        trial.refuse(reason)
        return
    try:
        objective(trial)
    except Diverged:
        trial.diverge()
    if FINISHED not in trial._last:
        raise UserError("the objective ended without its last report")


@dataclass
class Record:
    """What a search knows of a trial.

    Attributes:
        arm: Which of the compared optimizers.
        number: Of the trial, from 0.
        values: Hyper-parameters by name.
        status: How it ended.
        metrics: The last report.
        reports: How many there were.
        seconds: From its beginning to its last report.
        folder: What it wrote.
        error: Of a failed trial, its last line.
        reason: Of an infeasible trial, what forbids it.
    """

    arm: str
    number: int
    values: dict[str, Any]
    status: Status = "running"
    metrics: dict[str, float] = field(default_factory=dict)
    reports: int = 0
    seconds: float = 0.0
    folder: str = ""
    error: str = ""
    reason: str = ""

    def take(self, report: Mapping[str, Any]) -> None:
        """Take a report over."""
        numbers = {
            name: float(value)
            for name, value in report.items()
            if name not in (FINISHED, DIVERGED, INFEASIBLE, *CLOCK)
        }
        # Without a value a trial reports the worst there is; the table has none.
        lost = DIVERGED in report or INFEASIBLE in report
        self.metrics = dict.fromkeys(numbers, math.nan) if lost else numbers
        if INFEASIBLE in report:
            self.status, self.reason = "infeasible", str(report[INFEASIBLE])
        elif report.get(DIVERGED):
            self.status = "diverged"
        elif report.get(FINISHED):
            self.status = "completed"


class Watcher(Protocol):
    """Sees records while a search runs: the live table."""

    def __call__(self, record: Record) -> None:
        """Look at a record that is new or has changed."""
