"""What searches cost beside their trials: seconds for each, memory of the driver.

``python -m tests.benchmarks.searches`` prints the figures; it starts Ray.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tune import Job, Random, Resources, Space, Trial, cluster, local
from tune.trial import Record

DIGITS = Path(__file__).parents[2] / "configs" / "experiment" / "bbi_digits.yaml"
#: Bars: seconds per trivial trial by backend, GiB of a driver.
SECONDS_BARS = {"local": 0.010, "ray": 1.2}
MEMORY_BAR = 1.0
#: Trials of the drivers whose memory is measured.
TRIALS = {"local": 5000, "ray": 2000}
_BACKENDS = {"local": local.run, "ray": cluster.run}
_WARM = 5
_MODULE = "tests.benchmarks.searches"


def trivial(trial: Trial) -> None:
    """Report once."""
    trial.report({"loss": (trial.values["x"] - 1) ** 2}, finished=True)


def trivial_job(samples: int, concurrent: int = 1) -> Job:
    """Return a search of trials that do nothing."""
    return Job(
        arm="cost",
        objective=trivial,
        space=Space({"x": "Uniform(0, 2)"}),
        metric="loss",
        mode="min",
        samples=samples,
        searcher=Random(),
        concurrent=concurrent,
        resources=Resources(cpus=0.5),
    )


def fit_job(samples: int) -> Job:
    """Return a search of fits that make one step each, on the digits."""
    from tune.search import Search

    flags = ("max_epochs=1", "limit_train_batches=1", "limit_val_batches=0")
    search = Search(
        metric="train/epoch_loss",
        mode="min",
        experiment=str(DIGITS),
        arguments=[f"--trainer.{flag}" for flag in flags],
        samples=samples,
        checkpoint=False,
    )
    (job,) = search.jobs(search.settings()).values()
    return replace(job, concurrent=1, resources=Resources(cpus=0.5))


def seconds_per_trial(run: Callable[..., Any], job: Job) -> float:
    """Return the mean time between two ends of trials, after the first five.

    Args:
        run: Of a backend.
        job: Some dozens of trials.
    """
    ends: dict[int, float] = {}

    def watch(record: Record) -> None:
        if record.status != "running":
            ends.setdefault(record.number, time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        run(job, Path(folder, "search"), watch)
    first, *rest = sorted(ends.values())[_WARM - 1 :]
    return (rest[-1] - first) / len(rest)


def driver_memory(backend: str, trials: int, address: str = "") -> float:
    """Return the most memory that a driver held, in a process of its own, GiB.

    Args:
        backend: "ray" or "local".
        trials: How many trivial ones.
        address: Of a cluster; "": Ray starts on this machine.
    """
    command = [sys.executable, "-m", _MODULE, backend, str(trials), address]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def _drive(backend: str, trials: str, address: str) -> None:
    """Run a search; print the most memory that this process held, GiB."""
    if backend == "ray":
        cluster.connect(address or None)
    with tempfile.TemporaryDirectory() as folder:
        job = trivial_job(int(trials), concurrent=2)
        _BACKENDS[backend](job, Path(folder, "search"), lambda record: None)
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    print(int(line.split()[1]) / 2**20)


def rows() -> list[tuple[str, float, str, bool | None]]:
    """Measure: what, how much, the bar, whether it is met."""
    cluster.connect(None)
    found: list[tuple[str, float, str, bool | None]] = []
    for name, run in _BACKENDS.items():
        bar = SECONDS_BARS[name]
        for concurrent in (1, 2) if name == "ray" else (1,):
            cost = seconds_per_trial(run, trivial_job(35, concurrent))
            label = f"seconds per trivial trial, {name}, {concurrent} at a time"
            found.append((label, cost, f"<= {bar}", cost <= bar))
        cost = seconds_per_trial(run, fit_job(25))
        found.append((f"seconds per fit of one step, {name}", cost, "", None))
    for name, trials in TRIALS.items():
        memory = driver_memory(name, trials)
        label = f"driver of {trials} trivial trials, {name}, GiB"
        found.append((label, memory, f"<= {MEMORY_BAR:g}", memory <= MEMORY_BAR))
    return found


def main() -> None:
    """Measure and print."""
    table = Table("searches", "", "bar", "met")
    for label, value, bar, met in rows():
        verdict = "" if met is None else ("yes" if met else "NO")
        table.add_row(label, f"{value:.3g}", bar, verdict)
    Console(width=100).print(table)


if __name__ == "__main__":
    _drive(*sys.argv[1:]) if sys.argv[1:] else main()
