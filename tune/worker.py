"""What runs in a worker process of a cluster: one trial after the other.

The imports are few, so that a worker is soon ready.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
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
    sets: Mapping[pool.Key, Any],
) -> None:
    """Run a trial; Ray calls it in a process that it may use again.

    Args:
        config: What the searcher suggests.
        job: Whose trial it is.
        folder: Of the search.
        cwd: Working folder of the search.
        sets: Data sets in Ray's memory.
    """
    # A trial that the scheduler ends may take its time to leave: else 2 s.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    if Path(cwd).is_dir():
        os.chdir(cwd)  # relative paths of the settings mean the same as in the search
    _share(sets)
    folder = folder / Path(tune.get_context().get_trial_dir()).name
    trial = _RayTrial(
        int(folder.name), job.space.values(config), folder, job.metric, job.mode
    )
    trial.population = job.scheduler is not None and job.scheduler.population
    known = trial.outcome()
    if known is not None:
        tune.report(known)
        return
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)  # what was left by a cut attempt
        folder.mkdir(parents=True)
        attempt(job.objective, trial)
        return
    with checkpoint.as_directory() as place:
        trial.checkpoint = Path(place)
        attempt(job.objective, trial)


def _share(sets: Mapping[pool.Key, Any]) -> None:
    """Fill the pool with tensors in the memory that a node's processes share."""
    missing = [key for key in sets if key not in pool.content()]
    if not missing:
        return
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        tensors = {key: map(torch.from_numpy, ray.get(sets[key])) for key in missing}
        pool.open_({key: tuple(parts) for key, parts in tensors.items()})


class _RayTrial(Trial):
    """A trial that Ray's state may not know the end of, although it has ended."""

    def _deliver(self, metrics: dict[str, Any], save: Save | None) -> None:
        if FINISHED in metrics:
            metrics = {**metrics, "done": True}  # Ray's word for it
            beside = self.folder / f".{_OUTCOME}"
            beside.write_text(json.dumps({"values": self.values, "report": metrics}))
            beside.replace(self.folder / _OUTCOME)
        elif save is not None:
            with tempfile.TemporaryDirectory(prefix="checkpoint-") as place:
                save(Path(place))
                checkpoint = tune.Checkpoint.from_directory(place)
                tune.report(metrics, checkpoint=checkpoint)
            return
        tune.report(metrics)

    def outcome(self) -> dict[str, Any] | None:
        """Return the last report of an attempt that has ended; None: of no attempt."""
        file = self.folder / _OUTCOME
        if self.population or not file.is_file():
            return None
        found = json.loads(file.read_text())
        return found["report"] if found["values"] == self.values else None
