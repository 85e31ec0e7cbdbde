"""What runs in a worker process of a cluster: one trial after the other.

The imports are few, so that a worker is soon ready.
"""

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from lightning_ecd import pool
from tune.job import Job
from tune.trial import FINISHED, Save, Trial, attempt

#: The last report of a trial, in its folder.
_OUTCOME = "outcome.json"


def run(
    config: dict[str, Any],
    job: Job,
    folder: Path,
    cwd: str,
    sets: Sequence[Any],
) -> None:
    """Run a trial; Ray calls it in a process that it may use again.

    Args:
        config: What the searcher suggests.
        job: Whose trial it is.
        folder: Of the search.
        cwd: Working folder of the search.
        sets: Where in Ray's memory data sets are, as `read` returns them.
    """
    # A trial that the scheduler ends may take its time to leave: else 2 s.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    _enter(cwd)
    _share(sets)
    folder = folder / Path(tune.get_context().get_trial_dir()).name
    number, values = int(folder.name), job.space.values(config)
    trial = _RayTrial(number, values, folder, job.metric, job.mode)
    trial.population = job.scheduler is not None and job.scheduler.population
    known = trial.outcome()
    if known is not None:
        tune.report(known)
        return
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)  # what was left by a cut attempt
        folder.mkdir(parents=True)
        attempt(job.objective, trial, job.constraint)
        return
    with checkpoint.as_directory() as place:
        trial.checkpoint = Path(place)
        attempt(job.objective, trial, job.constraint)


def read(
    readers: Sequence[Callable[[], None]], cwd: str
) -> tuple[dict[pool.Key, Any], int]:
    """Read data sets, for Ray to keep: the search itself needs none.

    Args:
        readers: Each fills the pool.
        cwd: Working folder of the search.

    Returns:
        The data sets, and how many.
    """
    _enter(cwd)
    pool.open_()
    try:
        for reader in readers:
            reader()
        found = {
            key: [tensor.numpy() for tensor in tensors]
            for key, tensors in pool.content().items()
        }
        return found, len(found)
    finally:
        pool.close()


def _enter(cwd: str) -> None:
    """Let relative paths of the settings mean the same as in the search."""
    if Path(cwd).is_dir():
        os.chdir(cwd)


def _share(sets: Sequence[Any]) -> None:
    """Fill the pool with tensors in the memory that a node's processes share."""
    if not sets or pool.content():
        return
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        for found in ray.get(list(sets)):
            for key, arrays in found.items():
                pool.open_({key: tuple(map(torch.from_numpy, arrays))})


class _RayTrial(Trial):
    """A trial whose end is on disk before the search knows of it."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.started = self.told = time.monotonic()

    def _deliver(self, metrics: dict[str, Any], save: Save | None) -> None:
        # Ray would count what a worker imports, too
        now = time.monotonic()
        report = {**metrics, "time_this_iter_s": now - self.told}
        self.told = now
        if FINISHED in metrics:
            report["done"] = True  # Ray's word for it
            self._write_down(report)
            tune.report(report)
        elif save is not None:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as place:
                save(Path(place))
                checkpoint = tune.Checkpoint.from_directory(place)
                tune.report(report, checkpoint=checkpoint)
        else:
            tune.report(report)

    def _write_down(self, report: dict[str, Any]) -> None:
        """Write the last report, and what Ray knows of those before."""
        own = {
            "training_iteration": self.reports,
            "time_this_iter_s": time.monotonic() - self.started,
        }
        outcome = {"values": self.values, "report": {**report, **own}}
        beside = self.folder / f".{_OUTCOME}"
        beside.write_text(json.dumps(outcome))
        beside.replace(self.folder / _OUTCOME)

    def outcome(self) -> dict[str, Any] | None:
        """Return the last report of an attempt that has ended; None: there is none."""
        file = self.folder / _OUTCOME
        if self.population or not file.is_file():
            return None
        found = json.loads(file.read_text())
        return found["report"] if found["values"] == self.values else None
