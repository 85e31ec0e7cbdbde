"""Where a search on Ray stands, on disk: always whole, so that it can go on.

Ray writes where a search stands into a folder of its own every few seconds, and copies
that to the search's folder. A copy cut short would be the end of the search, the
scheduler is left out, and checkpoints stay for ever. So every state is kept here, too.
"""

import pickle
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from ray import cloudpickle
from ray.tune.callback import Callback
from ray.tune.experiment import Trial as RayTrial

#: The last whole state of a search: Ray's files of it, in one.
_STATE = "state.zip"


class Keeper(Callback):
    """Keeps every state that Ray writes: whole, and the scheduler's with it.

    Args:
        scheduler: Ray's; None: it has nothing to keep.
        checkpoints: The latest of every trial that stay as long as it runs. Ray would
            delete those that its last state on disk wants to go on from.
    """

    def __init__(self, scheduler: Any, checkpoints: int = 1):
        self.scheduler, self.checkpoints = scheduler, checkpoints
        self._former: bytes | None = None
        self._begun = False
        self._written = 0
        self._ended: list[Any] = []

    def get_state(self) -> dict[str, Any] | None:
        """Return what Ray is to write with its own state."""
        return self.scheduler and {"scheduler": _pickled(vars(self.scheduler))}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take what Ray has read."""
        self._former = state["scheduler"]

    def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
        """Give the scheduler its state back, as soon as the trials are there.

        What trials that the state does not know have left would take their names from
        their successors.
        """
        if self._begun or not trials:
            return
        self._begun = True
        if self._former is not None:
            vars(self.scheduler).update(_unpickled(self._former, trials))
        known = {Path(trial.local_path) for trial in trials}
        for place in Path(trials[0].local_experiment_path).iterdir():
            if place.is_dir() and place not in known:
                shutil.rmtree(place)

    def on_trial_complete(
        self, iteration: int, trials: Any, trial: Any, **_: Any
    ) -> None:
        """Remember whose checkpoints to delete."""
        self._ended.append(trial)

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Keep the state if Ray has written one; tidy up."""
        if trials and self._keep(trials[0]):
            self._delete_checkpoints(trials)

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        """Keep the last state."""
        self.on_step_end(0, trials)

    def _keep(self, trial: Any) -> bool:
        """Keep the state that Ray has just written; return whether it is new."""
        staging, folder = Path(trial.local_experiment_path), Path(trial.path).parent
        latest = max(staging.glob("experiment_state-*.json"), default=None)
        if latest is None or latest.stat().st_mtime_ns == self._written:
            return False
        self._written = latest.stat().st_mtime_ns
        stamp = latest.stem.removeprefix("experiment_state-")
        beside = folder / f".{_STATE}"
        with ZipFile(beside, "w") as archive:
            for file in staging.glob(f"*-{stamp}.*"):
                archive.write(file, file.name)
        beside.replace(folder / _STATE)
        return True

    def _delete_checkpoints(self, trials: Any) -> None:
        """Delete what no trial will go on from, by the state just written."""
        live = [trial for trial in trials if not trial.is_finished()]
        latest = [trial.latest_checkpoint_result for trial in live]
        used = {Path(result.checkpoint.path) for result in latest if result}

        def thin(trial: Any, stay: int) -> bool:
            """Return whether all those of a trial that are left may go."""
            found = sorted(Path(trial.path).glob("checkpoint_*"), reverse=True)
            for place in set(found[stay:]) - used:
                shutil.rmtree(place, ignore_errors=True)
            return used.isdisjoint(found)

        for trial in live:
            thin(trial, self.checkpoints)
        self._ended = [trial for trial in self._ended if not thin(trial, 0)]


def unpack(folder: Path) -> bool:
    """Put the last state of a search where Ray looks; return whether there is one."""
    if not (folder / _STATE).is_file():
        return False
    for file in folder.glob("*-????-??-??_??-??-??.*"):
        file.unlink()
    with ZipFile(folder / _STATE) as archive:
        archive.extractall(folder)
    return True


class _Pickler(cloudpickle.CloudPickler):  # type: ignore[misc, name-defined]
    """Writes only the name of a trial, which is made anew when a search goes on."""

    def persistent_id(self, obj: Any) -> str | None:
        return obj.trial_id if isinstance(obj, RayTrial) else None


class _Unpickler(pickle.Unpickler):
    trials: dict[str, Any]

    def persistent_load(self, name: str) -> Any:
        return self.trials[name]


def _pickled(state: dict[str, Any]) -> bytes:
    """Return the state of a scheduler as bytes."""
    file = BytesIO()
    _Pickler(file).dump(state)
    return file.getvalue()


def _unpickled(data: bytes, trials: Any) -> Any:
    """Return the state of a scheduler, about these trials."""
    unpickler = _Unpickler(BytesIO(data))
    unpickler.trials = {trial.trial_id: trial for trial in trials}
    return unpickler.load()
