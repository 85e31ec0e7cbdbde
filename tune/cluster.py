"""A search on Ray: many trials at a time, on one machine or a cluster."""

import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.callback import Callback
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lightning_ecd.errors import UserError
from tune import worker
from tune.job import Job
from tune.schedulers import PopulationBased
from tune.state import Keeper, unpack
from tune.trial import INFEASIBLE, Record, Watcher

#: How Ray behaves unless the user's environment says otherwise.
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
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
    _refuse_deaf(address)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
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
    # Twenty lines of a node's log when it is lost, which log_to_driver lets through
    ray._private.worker._worker_logs_enabled = False


def _refuse_deaf(address: str | None) -> None:
    """Refuse an address where nobody answers: Ray would try for many minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "://" in (address or ""):
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"address: nobody answers at {address} ({error}); start a cluster by "
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


def read(readers: Sequence[Callable[[], None]]) -> list[Any]:
    """Read data sets into Ray's memory, on this machine but in another process.

    Args:
        readers: Each fills the pool.

    Returns:
        Where they are, for `run`.

    Raises:
        UserError: If one of them does.
    """
    if not readers:
        return []
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    task: Any = ray.remote(worker.read)
    task = task.options(num_cpus=0, num_returns=2, scheduling_strategy=here)
    sets, number = task.remote(readers, os.getcwd())
    try:
        ray.get(number)  # and leave the sets where they are
    except RayTaskError as error:
        raise error.cause from None
    return [sets]


def run(
    job: Job, folder: Path, watch: Watcher, sets: Sequence[Any] = ()
) -> list[Record]:
    """Run the trials of a job, or those that an interrupted search has left.

    Args:
        job: What to do.
        folder: Where Ray keeps the search and every trial its own folder; all nodes
            must see it.
        watch: Sees every record that changes.
        sets: What `read` has returned.

    Raises:
        UserError: If there is no room for a trial, or one failed for good and
            `job.stop_on_failure` is set.
        KeyboardInterrupt: After Ctrl-C; the search can go on.
    """
    refuse_too_much(job)
    _Watch.begin(job, watch)
    trainable: Any = tune.with_resources(
        tune.with_parameters(
            worker.run, job=job, folder=folder.absolute(), cwd=os.getcwd(), sets=sets
        ),
        {"cpu": job.resources.cpus, "gpu": job.resources.gpus},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of deprecations within it
        if unpack(folder):
            tuner = tune.Tuner.restore(str(folder), trainable)
        else:
            tuner = _tuner(job, folder, trainable)
        try:
            interrupted = _fit(tuner)
        except TuneError:
            if _Watch.failure is None:
                raise
            raise UserError(_Watch.failure) from None
    if interrupted:
        raise KeyboardInterrupt
    records = map(_record, filter(_begun, _Watch.trials))
    found = sorted(records, key=lambda record: record.number)
    for record in found:
        watch(record)
    return found


def _tuner(job: Job, folder: Path, trainable: Any) -> tune.Tuner:
    searcher: Any = job.searcher.build(job.space, job.metric, job.mode)
    scheduler: Any = None
    if job.scheduler is not None:
        scheduler = job.scheduler.build(job.space, job.metric, job.mode)
    keeper = Keeper(scheduler)
    population = isinstance(job.scheduler, PopulationBased)
    if isinstance(job.scheduler, PopulationBased):
        # Ray wants all of it at once, and trials go on from each other's checkpoints
        points = [searcher.suggest(str(i)) for i in range(job.samples)]
        searcher = BasicVariantGenerator(points)
        keeper = Keeper(None, 2 + job.scheduler.perturbation_interval)
    return tune.Tuner(
        trainable,
        param_space=job.space.domains() if population else None,
        tune_config=tune.TuneConfig(
            num_samples=job.samples,
            search_alg=searcher,
            scheduler=scheduler,
            max_concurrent_trials=None if population else job.concurrent,
            time_budget_s=None if job.hours is None else 3600 * job.hours,
            reuse_actors=True,
            trial_dirname_creator=partial(_dirname, 0 if population else 1),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.absolute()),
            failure_config=tune.FailureConfig(max_failures=job.retries),
            callbacks=[_Watch(), keeper],
            verbose=0,
        ),
    )


def _dirname(first: int, trial: Any) -> str:
    """Return the number of a trial, from 0: Ray's tag of it is such as ``1_lr=0.1``."""
    return f"{int(trial.experiment_tag.split('_')[0]) - first:04d}"


def _fit(tuner: tune.Tuner) -> bool:
    """Run a search; return whether Ctrl-C has ended it."""
    if threading.current_thread() is not threading.main_thread():
        tuner.fit()  # no signals here
        return False
    former = signal.getsignal(signal.SIGINT)
    try:
        tuner.fit()
        # Ray's handler puts the former one back when it is called, and only then
        return signal.getsignal(signal.SIGINT) is former
    finally:
        signal.signal(signal.SIGINT, former)


# -- what is seen ------------------------------------------------------------------


class _Watch(Callback):
    """Tells the search's watcher what happens.

    Ray pickles its callbacks, which a table on the screen cannot be: the class knows
    the watcher, not the object.
    """

    job: Job
    watch: Watcher
    trials: list[Any]
    failure: str | None

    @classmethod
    def begin(cls, job: Job, watch: Watcher) -> None:
        cls.job, cls.watch, cls.trials, cls.failure = job, watch, [], None

    def setup(self, *_: Any, total_num_samples: int | None = None, **__: Any) -> None:
        if total_num_samples != self.job.samples:
            raise UserError(
                f"the folder of {self.job.arm} holds a search of {total_num_samples} "
                f"trials, not of {self.job.samples}, or Ray cannot read it: it cannot "
                "go on"
            )

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
        if self.job.stop_on_failure:  # the state on disk is of before, and so restores
            record = _record(trial)
            type(self).failure = f"trial {record.number} failed: {record.error}"
            raise UserError(self.failure)

    def on_experiment_end(self, trials: Any, **_: Any) -> None:
        _Watch.trials = list(trials)

    def _tell(self, trial: Any) -> None:
        type(self).watch(_record(trial))


def _begun(trial: Any) -> bool:
    return trial.status == RayTrial.ERROR or trial.run_metadata.start_time is not None


def _record(trial: Any) -> Record:
    """Return what Ray knows of a trial."""
    job, result = _Watch.job, trial.last_result or {}
    record = Record(
        job.arm,
        int(trial.custom_dirname),
        job.space.values(trial.config),
        folder=str(trial.path or ""),
        reports=int(result.get("training_iteration", 0)),
        seconds=float(result.get("time_total_s", 0.0)),
    )
    own = {k: v for k, v in result.items() if k not in _RAYS}
    told = {k: v for k, v in own.items() if isinstance(v, int | float)}
    told |= {k: own[k] for k in own.keys() & {INFEASIBLE}}  # a text
    record.take(told)
    if trial.status == RayTrial.ERROR:
        record.status, record.error = "failed", _last_line(trial)
    elif trial.status == RayTrial.TERMINATED and record.status == "running":
        record.status = "stopped"
    return record


def _last_line(trial: Any) -> str:
    """Return the last line of a trial's error, from here or where all nodes see it."""
    file = Path(trial.error_file or "")
    text = file.read_text() if file.is_file() else trial.get_error() or ""
    return (text.strip().splitlines() or ["unknown; see Ray's logs"])[-1]


#: What Ray adds to a report.
_RAYS = {
    *("timestamp", "done", "training_iteration", "time_this_iter_s", "time_total_s"),
    *("pid", "iterations_since_restore", "time_since_restore", "checkpoint_dir_name"),
    *("hostname", "node_ip", "date", "trial_id", "config", "experiment_tag"),
    "should_checkpoint",
}
