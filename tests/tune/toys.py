"""Searches that need neither a network nor a cluster."""

import json
import math

import pytest

from tune import Job, Random, Space, local

SPACE = Space({"x": "Uniform(-1, 1)", "y": "LogUniform(1e-3, 1)"})


def job(objective, **settings):
    """A job that minimizes "loss"; without a searcher at random points."""
    defaults = {
        "arm": "toy",
        "space": SPACE,
        "metric": "loss",
        "mode": "min",
        "samples": 4,
        "searcher": Random(),
    }
    return Job(objective=objective, **(defaults | settings))


def nobody(record):
    """Watches a search, and looks away."""


class Scripted:
    """Trial number i reports the i-th list of losses; remembers who ran."""

    def __init__(self, *losses):
        self.losses, self.ran = losses, []

    def __call__(self, trial):
        self.ran.append(trial.number)
        *losses, last = self.losses[trial.number]
        for loss in losses:
            trial.report({"loss": loss})
        trial.report({"loss": last}, finished=True)


def seen(record):
    """All that two equal trials of different folders and days have in common."""
    return (
        *(record.arm, record.number, record.values, record.status),
        *(repr(record.metrics), record.reports, record.error),
    )


class Walk:
    """Steps towards a bowl's bottom; saves the number of every step.

    `before` is called with trial and step, and may raise.
    """

    def __init__(self, before=lambda trial, step: None, steps=4, saves=True):
        self.before, self.steps, self.saves = before, steps, saves
        self.walked = []

    def __call__(self, trial):
        done = int((trial.checkpoint / "step").read_text()) if trial.checkpoint else 0
        trial.reports = done
        for step in range(done + 1, self.steps + 1):
            self.before(trial, step)
            self.walked.append((trial.number, step))

            def save(folder, step=step):
                folder.mkdir(exist_ok=True)
                (folder / "step").write_text(str(step))

            x, y = trial.values["x"], trial.values["y"]
            loss = (x - 0.3) ** 2 + (math.log10(y) + 1) ** 2 + 1 / step
            finished = step == self.steps
            trial.report({"loss": loss}, save if self.saves else None, finished)


class Boom(Exception):
    pass


class Once:
    """Raises an error, the first time that a trial comes to a step."""

    def __init__(self, number, step, error=None):
        self.place, self.error = (number, step), error or Boom("no\nmemory")
        self.times = 0

    def __call__(self, trial, step):
        if (trial.number, step) == self.place and not self.times:
            self.times += 1
            raise self.error


def run(folder, objective, watch=nobody, **settings):
    return local.run(job(objective, **settings), folder, watch)


def interrupted(folder, **settings):
    """Folders of searches that were interrupted, each one event later than the last.

    By the watcher, who is told between any two things that happen.
    """
    calls = []
    run(folder / "count", Walk(), calls.append, **settings)
    for last in range(len(calls)):
        left = iter(range(last))

        def watch(record, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(folder / f"after_{last}", Walk(), watch, **settings)
        yield folder / f"after_{last}"


def journal(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def statuses(records):
    return [record.status for record in records]
