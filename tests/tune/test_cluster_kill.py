"""Searches on a cluster whose driver is ended, and which go on elsewhere."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tune.tasks import long_job, steps_of, study
from tune import cluster

ROOT = Path(__file__).parents[2]


def nobody(record):
    """Watches a search, and looks away."""


def driver(address, folder, log, number, after):
    """Start a search in another process, end it by a signal after some trials.

    Returns:
        Number of every trial that had ended, and its loss; the exit status.
    """
    command = [sys.executable, "-m", "tests.tune.tasks", address, folder, log]
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    ended = {}
    with process, process.stdout as lines:
        for line in lines:
            name, status, loss = line.split()
            assert status == "completed"
            ended[int(name)] = float(loss)
            if len(ended) == after:
                process.send_signal(number)
    return ended, process.returncode


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_search_outlives_its_driver(machine, tmp_path, log, number, code):
    optuna = pytest.importorskip("optuna", reason="needs the package optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = tmp_path / "search"
    ended, returned = driver(machine.address, folder, log, number, after=5)
    assert returned == code
    assert 5 <= len(ended) <= 7
    for file in folder.glob("*-state*"):  # as if it had been cut while it was copied
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    records = cluster.run(long_job(log), folder, nobody)
    assert [record.number for record in records] == list(range(12))
    for record in records:
        assert (record.status, record.reports) == ("completed", 8)
        assert record.metrics["loss"] == pytest.approx(8 * record.values["x"])
    # Nothing that had ended runs again; two trials go on from Ray's last state.
    assert {n: records[n].metrics["loss"] for n in ended} == ended
    steps = steps_of(log)
    assert all(set(steps[n].values()) == {1} for n in ended)
    assert sum(sum(times.values()) for times in steps.values()) <= 12 * 8 + 2 * 8
    # The searcher has gone on, and knows what it was told before.
    told = {(t.params["x"], t.value) for t in study(folder).trials}
    assert told == {(r.values["x"], r.metrics["loss"]) for r in records}
    assert len(told) == 12
