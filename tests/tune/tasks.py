"""What the tests let workers of a cluster do; imports nothing heavy.

``python -m tests.tune.tasks ADDRESS FOLDER LOG`` is a driver to be killed.
"""

import json
import os
import pickle
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import ray

from tune import Job, Optuna, Random, Resources, Space, cluster

SPACE = Space({"x": "Uniform(0, 1)"})


def job(objective, **settings):
    """A job that minimizes "loss", one trial at a time."""
    defaults = {
        "arm": "toy",
        "space": SPACE,
        "metric": "loss",
        "mode": "min",
        "samples": 4,
        "searcher": Random(),
        "concurrent": 1,
        "resources": Resources(cpus=0.5),
    }
    return Job(objective=objective, **(defaults | settings))


class Steps:
    """Sums x over steps, with a checkpoint after each; writes down who did which.

    Args:
        log: Folder with a line of step, node and process for every step of a trial.
        steps: Reports.
        pause: Seconds that a step takes.
        together: So many of the first trials wait for each other's first step.
    """

    def __init__(self, log, steps=3, pause=0.0, together=1):
        self.log, self.steps, self.pause = log, steps, pause
        self.together = together

    def __call__(self, trial):
        step, total = 0, 0.0
        if trial.checkpoint is not None:
            step, total = json.loads((trial.checkpoint / "sum.json").read_text())
            trial.reports = step
        while step < self.steps:
            time.sleep(self.pause)
            step, total = step + 1, total + trial.values["x"]
            with open(self.log / f"{trial.number}.txt", "a") as out:
                node = ray.get_runtime_context().get_node_id()
                print(step, node, os.getpid(), file=out)
            while trial.number < self.together and not self.all_begun():
                time.sleep(0.05)

            def save(folder, state=(step, total)):
                _write(folder / "sum.json", state)

            trial.report({"loss": total, "step": step}, save, step == self.steps)

    def all_begun(self):
        return all((self.log / f"{i}.txt").exists() for i in range(self.together))


class Walk:
    """Goes x further with every step; its checkpoint tells who made which.

    Args:
        log: Folder with the way of every trial at its end.
        steps: Reports but for the last.
    """

    def __init__(self, log, steps=6):
        self.log, self.steps = log, steps

    def __call__(self, trial):
        way, x = [], trial.values["x"]
        if trial.checkpoint is not None:
            way = json.loads((trial.checkpoint / "way.json").read_text())
            trial.reports = len(way)
        while len(way) < self.steps:
            way.append((trial.number, x))
            trial.report(_far(way), lambda folder: _write(folder / "way.json", way))
        _write(self.log / f"{trial.number}.json", way)
        trial.report(_far(way), finished=True)


def above_half(values):
    """Forbids the upper half of x."""
    return "x is above 0.5" if values["x"] > 0.5 else None


def _far(way):
    return {"loss": -sum(x for _, x in way)}


def _write(file, content):
    file.write_text(json.dumps(content))


def ways_of(log):
    """Return for every trial all its steps until its end: who made them, and x."""
    return [json.loads(file.read_text()) for file in sorted(log.glob("*.json"))]


def steps_of(log):
    """Return for every trial how often it made which step."""
    return {
        int(file.stem): Counter(int(n.split()[0]) for n in _lines(file))
        for file in log.glob("*.txt")
    }


def nodes_of(log, number):
    """Return the nodes of a trial's steps."""
    return [line.split()[1] for line in _lines(log / f"{number}.txt")]


def process_of(log, number):
    """Return the process of a trial's last step."""
    return int(_lines(log / f"{number}.txt")[-1].split()[2])


def _lines(file):
    return file.read_text().splitlines()


def study(folder):
    """The study of Optuna in the last state of a search."""
    with ZipFile(folder / "state.zip") as state:
        (name,) = (n for n in state.namelist() if n.startswith("searcher-state-"))
        return pickle.loads(state.read(name))["_ot_study"]


class Accidents:
    """Another objective that goes wrong in some trials, just before a report.

    Args:
        objective: What goes wrong.
        log: Folder for marks of what has happened.
        kinds: Number of a trial to "raise", "die", both once, or "raise always".
        before: So many reports go well before the first accident.
    """

    def __init__(self, objective, log, kinds, before=2):
        self.objective, self.log, self.kinds = objective, log, kinds
        self.before = before

    def __call__(self, trial):
        report, self.count = trial.report, 0

        def watched(*args, **settings):
            kind, mark = self.kinds.get(trial.number), self.mark(trial.number)
            again = mark.exists()
            if kind == "raise always" if again else self.count == self.before and kind:
                mark.touch()
                if kind == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ZeroDivisionError("a wheel came off")
            self.count += 1
            report(*args, **settings)

        trial.report = watched
        self.objective(trial)

    def mark(self, number):
        return self.log / f"accident of {number}"


def long_job(log):
    """A search that takes some seconds: many checkpoints between Ray's states."""
    steps, searcher = Steps(log, steps=8, pause=0.1), Optuna(startup=3)
    return job(steps, samples=12, concurrent=2, searcher=searcher)


def main(address, folder, log):
    def watch(record):
        if record.status != "running":
            print(record.number, record.status, record.metrics.get("loss"), flush=True)

    cluster.connect(address)
    try:
        cluster.run(long_job(Path(log)), Path(folder), watch)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
