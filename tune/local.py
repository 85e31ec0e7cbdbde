"""A search in this process, one trial after the other; for tests and small trials.

All that happens is appended to a journal before the next thing happens. A search that
was interrupted reads it again: searcher and scheduler, which are deterministic, are
told the same things in the same order and so get into the same state.
"""

import json
import os
import shutil
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from lightning_ecd.errors import UserError
from tune.job import Job
from tune.spaces import Point
from tune.trial import Record, Save, Stopped, Trial, Watcher, attempt

_JOURNAL = "trials.jsonl"


def run(job: Job, folder: Path, watch: Watcher) -> list[Record]:
    """Run the trials of a job that the folder's journal does not hold already.

    Args:
        job: What to do.
        folder: Journal and folders of the trials.
        watch: Sees every record that changes.

    Raises:
        UserError: If the journal belongs to another search.
        KeyboardInterrupt: After Ctrl-C; the journal is whole.
    """
    if job.scheduler is not None and job.scheduler.population:
        raise UserError(
            f"scheduler {type(job.scheduler).__name__} needs several trials at a time: "
            "set backend to ray"
        )
    folder.mkdir(parents=True, exist_ok=True)
    past = _past(folder / _JOURNAL)
    # ASHA interpolates between the infinite losses of trials that diverged.
    with open(folder / _JOURNAL, "a") as journal, np.errstate(invalid="ignore"):
        return list(_Search(job, folder, watch, journal, past).records())


#: A line of the journal: trial, and one of point, report, end.
_Event = dict[str, Any]


class _Search:
    """Searcher, scheduler and journal of a job."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        watch: Watcher,
        journal: TextIO,
        past: dict[int, list[_Event]],
    ):
        self.job, self.folder, self.watch = job, folder, watch
        self.journal, self.past = journal, past
        self.searcher = job.searcher.build(job.space, job.metric, job.mode)
        self.scheduler: TrialScheduler = FIFOScheduler()
        if job.scheduler is not None:
            self.scheduler = job.scheduler.build(job.space, job.metric, job.mode)
        limit = None if job.hours is None else 3600 * job.hours
        self.deadline = None if limit is None else time.monotonic() + limit

    def write(self, number: int, **event: Any) -> None:
        self.journal.write(json.dumps({"trial": number, **event}) + "\n")
        self.journal.flush()

    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def records(self) -> Iterator[Record]:
        for number in range(self.job.samples):
            if self.late() and number not in self.past:
                return
            point = self.searcher.suggest(str(number))
            if not isinstance(point, dict):
                return  # nothing is left to try
            run = _Run(self, number, point)
            run.replay(self.past.get(number, []))
            if not run.ended:
                run.go()
            yield run.record
            if run.record.status == "failed" and self.job.stop_on_failure:
                raise UserError(f"trial {number} failed: {run.record.error}")


class _Run:
    """One trial of the search, and its stand-in before Ray's scheduler."""

    status = "RUNNING"

    def __init__(self, search: _Search, number: int, point: Point):
        job = search.job
        self.search, self.point = search, _as_read(point)
        self.trial_id, self.config = str(number), point
        self.stand_in = cast(Any, self)  # schedulers read what Ray's trial has too
        self.folder = search.folder / f"{number:04d}"
        self.record = Record(
            job.arm, number, job.space.values(point), folder=str(self.folder)
        )
        self.last: dict[str, Any] = {}
        self.ended = False
        self.started = time.monotonic()
        search.scheduler.on_trial_add(_ALONE, self.stand_in)

    def replay(self, events: list[_Event]) -> None:
        """Take over what the journal knows of the trial."""
        if not events:
            self.search.write(self.record.number, point=self.point)
            return
        if events[0].get("point") != self.point:
            raise UserError(
                f"{self.folder}: the search now suggests {self.point} for this trial, "
                f"the journal has {events[0].get('point')}: it cannot go on"
            )
        goes_on = True
        for event in events[1:]:
            if "report" in event:
                goes_on = self.take(event["report"])
            else:
                self.record.status, self.record.error = event["end"], event["error"]
                self.end()
        if self.record.status == "running" and not goes_on:
            self.record.status = "stopped"
        if self.record.status != "running" and not self.ended:
            self.end(write=True)
        self.started = time.monotonic() - self.record.seconds

    def take(self, report: dict[str, Any]) -> bool:
        """Take a report; return whether the trial goes on."""
        self.last = report
        self.record.take(report)
        self.record.reports = report["training_iteration"]
        self.record.seconds = report["time_total_s"]
        search, name = self.search, self.trial_id
        search.searcher.on_trial_result(name, report)
        decision = search.scheduler.on_trial_result(_ALONE, self.stand_in, report)
        search.watch(self.record)
        return decision != TrialScheduler.STOP

    def go(self) -> None:
        """Run, again after errors, to one of the ends."""
        job, record = self.search.job, self.record
        self.folder.mkdir(exist_ok=True)
        self.search.watch(record)
        for retries in range(job.retries, -1, -1):
            trial = _LocalTrial(
                record.number,
                record.values,
                self.folder,
                job.metric,
                job.mode,
                self.checkpoint(),
            )
            trial.run = self
            try:
                attempt(job.objective, trial, job.constraint)
                if record.status == "running":
                    raise UserError("the objective ended without its last report")
            except Stopped:
                record.status = "stopped"
            except Exception as error:
                record.error = f"{type(error).__name__}: {error}".splitlines()[0]
                (self.folder / "error.txt").write_text(traceback.format_exc())
                if retries and not isinstance(error, UserError):
                    continue
                record.status = "failed"
            break
        if record.status != "failed":
            record.error = ""  # of an attempt before
        self.end(write=True)

    def save(self, save: Save) -> None:
        """Replace the checkpoint by that of the last report."""
        new, part = self.saved(self.record.reports), self.folder / "part"
        for folder in (new, part):  # what a crash has left
            shutil.rmtree(folder, ignore_errors=True)
        former = list(self.folder.glob("checkpoint_*"))
        part.mkdir()
        save(part)
        part.rename(new)
        for folder in former:
            shutil.rmtree(folder, ignore_errors=True)

    def checkpoint(self) -> Path | None:
        """Return the latest checkpoint whose report the journal knows."""
        folders = map(self.saved, range(self.record.reports, 0, -1))
        return next(filter(Path.is_dir, folders), None)

    def saved(self, reports: int) -> Path:
        """Return the folder of a checkpoint."""
        return self.folder / f"checkpoint_{reports:06d}"

    def end(self, write: bool = False) -> None:
        """Tell everyone how the trial ended."""
        record, search = self.record, self.search
        self.ended = True
        if write:
            search.write(record.number, end=record.status, error=record.error)
        failed = record.status == "failed"
        if failed:
            search.scheduler.on_trial_error(_ALONE, self.stand_in)
        else:
            search.scheduler.on_trial_complete(_ALONE, self.stand_in, self.last)
        search.searcher.on_trial_complete(
            self.trial_id, None if failed else self.last, error=failed
        )
        search.watch(record)


class _LocalTrial(Trial):
    run: _Run

    def _deliver(self, metrics: dict[str, Any], save: Save | None) -> None:
        run = self.run
        if self.reports <= run.record.reports:
            return  # told before the trial was begun again
        report = {
            **metrics,
            "training_iteration": self.reports,
            "time_total_s": time.monotonic() - run.started,
        }
        run.search.write(self.number, report=report)
        goes_on = run.take(report)
        if run.record.status == "running" and (not goes_on or run.search.late()):
            raise Stopped
        if save is not None:
            run.save(save)


class _NoOthers:
    """What schedulers see of Ray's controller: no other trial is alive."""

    def get_live_trials(self) -> list[Any]:
        return []


_ALONE: Any = _NoOthers()


def _past(journal: Path) -> dict[int, list[_Event]]:
    """Return the events of every trial; a line cut by a crash is left out."""
    events: dict[int, list[_Event]] = defaultdict(list)
    if journal.is_file():
        data = journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(journal, len(whole))
        for line in whole.splitlines():
            event = _Event(json.loads(line))
            events[event["trial"]].append(event)
    return dict(events)


def _as_read(point: Point) -> Point:
    """Return a point as it comes back from the journal."""
    return json.loads(json.dumps(point, default=lambda number: number.item()))
