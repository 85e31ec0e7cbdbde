"""What the tests let workers of a cluster do; imports nothing heavy.

``python -m tests.tune.tasks ADDRESS FOLDER LOG`` is a driver to be killed.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import ray

from tune import Job, Random, Resources, Space, cluster

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
        while step < self.steps:
            time.sleep(self.pause)
            step, total = step + 1, total + trial.values["x"]
            with open(self.log / f"{trial.number}.txt", "a") as out:
                node = ray.get_runtime_context().get_node_id()
                print(step, node, os.getpid(), file=out)
            while trial.number < self.together and not self.all_begun():
                time.sleep(0.05)

            def save(folder, state=(step, total)):
                (folder / "sum.json").write_text(json.dumps(state))

            trial.report({"loss": total, "step": step}, save, step == self.steps)

    def all_begun(self):
        return all((self.log / f"{i}.txt").exists() for i in range(self.together))


def steps_of(log):
    """Return for every trial how often it made which step."""
    return {
        int(file.stem): Counter(int(n.split()[0]) for n in _lines(file))
        for file in log.glob("*.txt")
    }


def nodes_of(log, number):
    """Return the nodes of a trial's steps."""
    return [line.split()[1] for line in _lines(log / f"{number}.txt")]


def _lines(file):
    return file.read_text().splitlines()


class Accidents:
    """Another objective that goes wrong in some trials, just before a report.

    Args:
        objective: What goes wrong.
        log: Folder for marks of what has happened.
        kinds: Number of a trial to "raise", "die", both once, or "raise always".
        before: So many reports go well before.
    """

    def __init__(self, objective, log, kinds, before=2):
        self.objective, self.log, self.kinds = objective, log, kinds
        self.before = before

    def __call__(self, trial):
        report, self.count = trial.report, 0

        def watched(*args, **settings):
            if self.count == self.before:
                self.happen(self.kinds.get(trial.number, ""), trial.number)
            self.count += 1
            report(*args, **settings)

        trial.report = watched
        self.objective(trial)

    def happen(self, kind, number):
        mark = self.log / f"accident of {number}"
        if not kind or (mark.exists() and kind != "raise always"):
            return
        mark.touch()
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError("a wheel came off")


def long_job(log, searcher):
    """A search that takes some seconds."""
    return job(
        Steps(log, steps=3, pause=0.1), samples=12, concurrent=2, searcher=searcher
    )


def main(address, folder, log):
    def watch(record):
        if record.status != "running":
            print(record.number, record.status, record.metrics["loss"], flush=True)

    cluster.connect(address)
    try:
        cluster.run(long_job(Path(log)), Path(folder), watch)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
