"""A search on Ray: many trials at a time, on one machine or a cluster."""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.callback import Callback
from ray.tune.logger import JsonLoggerCallback

from datamodules import pool
from lightning_ecd.errors import UserError
from tune.job import Job
from tune.trial import Record, Save, Trial, Watcher, attempt

#: How Ray behaves unless the user's environment says otherwise.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def connect(address: str | None) -> None:
    """Start Ray on this machine, or join a cluster.

    Args:
        address: Of the head node, ``host:port``; "auto": the cluster that this
            machine belongs to; None: this machine alone.

    Raises:
        UserError: If there is no cluster.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address is None:
        settings |= {"include_dashboard": False, "num_cpus": os.cpu_count()}
    try:
        ray.init(address=address or "local", **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"address: there is no Ray cluster at {address} ({reason}); start one by "
            "`ray start --head`, or leave address out"
        ) from error


def refuse_too_much(job: Job) -> None:
    """Refuse a trial that no node of the cluster has room for.

    Raises:
        UserError: Naming what is missing.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": job.resources.cpus, "GPU": job.resources.gpus}
    if any(all(node.get(kind, 0) >= n for kind, n in wanted.items()) for node in nodes):
        return
    rooms = ", ".join(
        f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
    )
    raise UserError(
        f"resources: a trial wants {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs, "
        f"but the nodes have {rooms}"
    )


def run(job: Job, folder: Path, watch: Watcher) -> list[Record]:
    """Run the trials of a job, or those that an interrupted search has left.

    Args:
        job: What to do.
        folder: Where Ray keeps the search and every trial its own folder; all nodes
            must see it.
        watch: Sees every record that changes.

    Raises:
        UserError: If there is no room for a trial, or one failed for good and
            `job.stop_on_failure` is set.
        KeyboardInterrupt: After Ctrl-C; the search can go on.
    """
    refuse_too_much(job)
    _Watch.job, _Watch.watch, _Watch.trials = job, watch, []
    sets = {key: [t.numpy() for t in part] for key, part in pool.content().items()}
    trainable: Any = tune.with_resources(
        # with_parameters puts them into the object store, once for all trials
        tune.with_parameters(_trial, job=job, cwd=os.getcwd(), sets=sets),
        {"cpu": job.resources.cpus, "gpu": job.resources.gpus},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of deprecations within it
        if tune.Tuner.can_restore(str(folder)):
            tuner = tune.Tuner.restore(str(folder), trainable, resume_errored=True)
        else:
            tuner = _tuner(job, folder, trainable)
        tuner.fit()
    records = sorted(map(_record, _Watch.trials), key=lambda record: record.number)
    if any(record.status == "running" for record in records):
        raise KeyboardInterrupt
    failed = [record for record in records if record.status == "failed"]
    if failed and job.stop_on_failure:
        raise UserError(f"trial {failed[0].number} failed: {failed[0].error}")
    return records


def _tuner(job: Job, folder: Path, trainable: Any) -> tune.Tuner:
    population = job.scheduler is not None and job.scheduler.population
    checkpoints = tune.CheckpointConfig(num_to_keep=2)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=job.samples,
            search_alg=job.searcher.build(job.space, job.metric, job.mode),
            scheduler=job.scheduler
            and job.scheduler.build(job.space, job.metric, job.mode),
            max_concurrent_trials=job.concurrent,
            time_budget_s=None if job.hours is None else 3600 * job.hours,
            reuse_actors=True,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.absolute()),
            failure_config=tune.FailureConfig(
                max_failures=job.retries, fail_fast=job.stop_on_failure
            ),
            # population-based training copies them while they are replaced
            checkpoint_config=None if population else checkpoints,
            callbacks=[JsonLoggerCallback(), _Watch()],
            verbose=0,
        ),
    )


def _dirname(trial: Any) -> str:
    """Return the number of a trial: Ray's tag of it is such as ``1_lr=0.1``."""
    return f"{int(trial.experiment_tag.split('_')[0]) - 1:04d}"


# -- in a worker -----------------------------------------------------------------


def _trial(
    config: dict[str, Any],
    job: Job,
    cwd: str,
    sets: Mapping[pool.Key, list[Any]],
) -> None:
    """Run a trial; Ray calls it in a process that it may use again."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    if Path(cwd).is_dir():
        os.chdir(cwd)  # relative paths of the settings mean the same as in the driver
    if sets and not pool.content():
        # no copies: the arrays lie in the memory that Ray shares between processes
        pool.open_({k: tuple(map(torch.from_numpy, v)) for k, v in sets.items()})
    context = tune.get_context()
    folder = Path(context.get_trial_dir())
    folder.mkdir(parents=True, exist_ok=True)
    population = job.scheduler is not None and job.scheduler.population
    settings = (int(folder.name), job.space.values(config), folder)
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        attempt(job.objective, _RayTrial(*settings, job.metric, job.mode))
        return
    with checkpoint.as_directory() as place:
        from_ = Path(place)
        attempt(
            job.objective,
            _RayTrial(*settings, job.metric, job.mode, from_, population),
        )


class _RayTrial(Trial):
    def _deliver(self, metrics: dict[str, Any], save: Save | None) -> None:
        if save is None:
            tune.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as folder:
            save(Path(folder))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


# -- in the driver ---------------------------------------------------------------


class _Watch(Callback):
    """Tells the search's watcher what happens.

    Ray pickles its callbacks, which a table on the screen cannot be: the class knows
    the watcher, not the object.
    """

    job: Job
    watch: Watcher
    trials: list[Any]

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._tell(trial)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        self._tell(trial)

    def on_trial_complete(
        self, iteration: int, trials: Any, trial: Any, **_: Any
    ) -> None:
        record = _record(trial)
        if record.status == "running":  # Ray has not changed its own status yet
            record.status = "stopped"
        type(self).watch(record)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self._tell(trial)

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        _Watch.trials = list(trials)

    def _tell(self, trial: Any) -> None:
        type(self).watch(_record(trial))


def _record(trial: Any) -> Record:
    """Return what Ray knows of a trial."""
    job, result = _Watch.job, trial.last_result or {}
    record = Record(
        job.arm,
        int(_dirname(trial)),
        job.space.values(trial.config),
        folder=str(trial.path or ""),
        reports=int(result.get("training_iteration", 0)),
        seconds=float(result.get("time_total_s", 0.0)),
    )
    own = {k: v for k, v in result.items() if k not in _RAYS}
    record.take({k: v for k, v in own.items() if isinstance(v, int | float)})
    if trial.status == "ERROR":
        record.status = "failed"
        record.error = _last_line(trial.error_file)
    elif trial.status == "TERMINATED" and record.status == "running":
        record.status = "stopped"
    return record


def _last_line(file: str | None) -> str:
    lines = Path(file).read_text().strip().splitlines() if file else []
    return lines[-1] if lines else "unknown; see Ray's logs"


#: What Ray adds to a report.
_RAYS = {
    *("timestamp", "done", "training_iteration", "time_this_iter_s", "time_total_s"),
    *("pid", "iterations_since_restore", "time_since_restore", "checkpoint_dir_name"),
    *("hostname", "node_ip", "date", "trial_id", "config", "experiment_tag"),
    "should_checkpoint",
}
