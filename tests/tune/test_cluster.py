"""Searches on a cluster of two nodes on this machine: what ends how, and survives."""

import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from lightning_ecd import pool
from lightning_ecd.errors import Diverged, UserError
from tests.tune.tasks import (
    Accidents,
    Steps,
    Walk,
    above_half,
    job,
    nodes_of,
    process_of,
    steps_of,
    study,
    ways_of,
)
from tune import (
    ASHA,
    MedianStopping,
    Optuna,
    PopulationBased,
    Resources,
    cluster,
)


class Seen(list):
    """A watcher: remembers who ended, and may look at every record."""

    def __init__(self, look=None):
        self.look = look

    def __call__(self, record):
        if record.status != "running":
            self.append((record.number, record.status))
        if self.look is not None:
            self.look(record)


def run(folder, objective, seen=None, **settings):
    seen = Seen() if seen is None else seen
    return cluster.run(job(objective, **settings), folder / "search", seen)


def ends(records):
    return [(record.status, record.reports) for record in records]


# -- two nodes ---------------------------------------------------------------------


def test_a_lost_node_takes_no_trial_with_it(machine, tmp_path, log):
    """It is killed when it has ended a trial and amid another, after two reports."""
    node = machine.add_node(num_cpus=1)
    before, lost = {}, []

    def look(record):
        if record.status == "completed":
            before.setdefault(record.number, record.metrics["loss"])
        elif record.reports == 2 and not lost and len(before) > 1:
            if nodes_of(log, record.number)[-1] == node.node_id:
                lost.append(record.number)
                process = Path("/proc", str(process_of(log, record.number)))
                machine.remove_node(node, allow_graceful=False)
                while process.exists():
                    time.sleep(0.05)

    steps = Steps(log, steps=4, pause=0.2, together=2)
    settings = {"samples": 7, "concurrent": None, "resources": Resources(cpus=1)}
    records = run(tmp_path, steps, Seen(look), retries=1, **settings)
    assert len(lost) == 1
    assert len({nodes_of(log, number)[0] for number in before}) == 2
    assert ends(records) == [("completed", 4)] * 7
    for record in records:
        assert record.metrics["loss"] == pytest.approx(4 * record.values["x"])
        assert before[record.number] == record.metrics["loss"]
    # Steps 3 and 4 of the lost trial were made elsewhere; a step may have been cut.
    steps = steps_of(log)
    assert len(set(nodes_of(log, lost[0]))) == 2
    assert steps.pop(lost[0])[1] == 1
    assert all(set(times.values()) == {1} for times in steps.values())


def test_an_address_where_nobody_answers_is_one_line(machine):
    """`machine` has joined its cluster by an address that is right."""
    with pytest.raises(UserError, match="nobody answers at 127.0.0.1:9 "):
        cluster._refuse_deaf("127.0.0.1:9")


def test_a_trial_that_fits_no_node_is_refused(machine, tmp_path, log):
    with pytest.raises(UserError, match="^resources: a trial wants 1 CPUs and 0.5 GPU"):
        run(tmp_path, Steps(log), resources=Resources(cpus=1, gpus=0.5))


class Reader:
    """Reads a megabyte into the pool, and writes down that it did."""

    def __init__(self, log):
        self.log = log

    def __call__(self):
        with open(self.log / "reads.txt", "a") as out:
            print(os.getpid(), file=out)
        pool.lent(("set",), lambda: (torch.ones(2**18), torch.arange(2)))


def shared(trial):
    """Reports whether the tensor of the pool lies in memory that processes share."""
    large, small = pool.content()["set",]
    assert large.sum() == 2**18
    assert small.tolist() == [0, 1]
    with open("/proc/self/maps") as lines:
        for line in lines:
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if low <= large.data_ptr() < high:
                trial.report({"loss": float("/plasma" in line)}, finished=True)


def test_data_are_read_once_and_shared_by_all_trials(machine, tmp_path, log):
    sets = cluster.read([Reader(log)])
    settings = job(shared, concurrent=2)
    records = cluster.run(settings, tmp_path / "search", Seen(), sets)
    assert [record.metrics["loss"] for record in records] == [1.0] * 4
    assert len((log / "reads.txt").read_text().splitlines()) == 1
    assert not pool.content()


def complain():
    raise UserError("data: the file is damaged")


def test_data_that_cannot_be_read_are_one_line(machine):
    with pytest.raises(UserError, match="^data: the file is damaged$"):
        cluster.read([complain])
    assert cluster.read([]) == []


def test_what_a_constraint_forbids_is_told_and_not_run(machine, tmp_path, log):
    steps, settings = Steps(log), {"samples": 6, "constraint": above_half}
    records = run(tmp_path, steps, **settings)
    assert {record.status for record in records} == {"completed", "infeasible"}
    for record in records:
        forbidden = record.values["x"] > 0.5
        assert record.status == ("infeasible" if forbidden else "completed")
        assert record.reason == ("x is above 0.5" if forbidden else "")
        assert math.isnan(record.metrics["loss"]) == forbidden
        assert (record.number in steps_of(log)) != forbidden
    assert run(tmp_path, steps, **settings) == records
    assert all(set(times.values()) == {1} for times in steps_of(log).values())


# -- accidents ---------------------------------------------------------------------


def test_trials_with_accidents_go_on_from_their_checkpoints(machine, tmp_path, log):
    """The third step of trials 1 and 2 is not reported before it is made again."""
    kinds = {1: "raise", 2: "die", 3: "raise always"}
    seen, objective = Seen(), Accidents(Steps(log), log, kinds)
    records = run(tmp_path, objective, seen, samples=5, retries=1)
    well, steps = ("completed", 3), steps_of(log)
    assert ends(records) == [well, well, well, ("failed", 2), well]
    for record in [*records[:3], records[4]]:
        assert record.metrics["loss"] == pytest.approx(3 * record.values["x"])
        assert record.metrics["step"] == 3
    assert steps[0] == steps[4] == {1: 1, 2: 1, 3: 1}
    assert steps[1] == steps[2] == steps[3] == {1: 1, 2: 1, 3: 2}
    assert records[3].error == "ZeroDivisionError: a wheel came off"
    assert [number for number, status in seen if status == "failed"] == [3, 3]
    # failed for good is for good
    again = Seen()
    assert run(tmp_path, objective, again, samples=5, retries=1) == records
    assert sorted(again) == sorted(set(seen))
    assert steps_of(log) == steps


def test_a_search_that_a_failure_ends_tries_again_when_it_goes_on(
    machine, tmp_path, log
):
    settings = {"samples": 3, "retries": 0, "stop_on_failure": True}
    objective = Accidents(Steps(log), log, {1: "raise"}, before=0)
    expected = "^trial 1 failed: ZeroDivisionError: a wheel came off$"
    with pytest.raises(UserError, match=expected):
        run(tmp_path, objective, **settings)
    assert set(steps_of(log)) == {0, 1}
    records = run(tmp_path, objective, **settings)
    assert ends(records) == [("completed", 3)] * 3
    assert steps_of(log)[0] == {1: 1, 2: 1, 3: 1}


def bad_middle(trial):
    """Diverges in the middle third: by an error, or by what it reports.

    Trial 0 forgets its last report.
    """
    x = trial.values["x"]
    if trial.number == 0:
        trial.report({"loss": x})
        return
    if 1 / 3 < x < 1 / 2:
        raise Diverged("the loss is nan")
    trial.report({"loss": math.nan if 1 / 2 <= x < 2 / 3 else x, "other": 1.0})
    trial.report({"loss": x, "other": 2.0}, finished=True)


def test_divergence_is_a_result_and_the_searcher_is_told_the_worst(machine, tmp_path):
    optuna = pytest.importorskip("optuna", reason="needs the package optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = {"samples": 12, "searcher": Optuna(startup=12), "retries": 0}
    forgetful, *records = run(tmp_path, bad_middle, **settings)
    assert forgetful.status == "failed"
    assert forgetful.error.endswith("the objective ended without its last report")
    for record in records:
        if 1 / 3 < record.values["x"] < 2 / 3:
            assert (record.status, record.error) == ("diverged", "")
            assert math.isnan(record.metrics["loss"])
        else:
            assert record.status == "completed"
            assert record.metrics == {"loss": record.values["x"], "other": 2.0}
    assert {record.status for record in records} == {"completed", "diverged"}
    told = [trial.value for trial in study(tmp_path / "search").trials]
    worst = [
        r.metrics["loss"] if r.status == "completed" else math.inf for r in records
    ]
    assert told == [None, *worst]


# -- schedulers --------------------------------------------------------------------


def ladder(trial):
    """Trial number i reports i + 1 four times."""
    for step in range(4):
        trial.report({"loss": trial.number + 1.0}, finished=step == 3)


@pytest.mark.parametrize("kind", [ASHA, MedianStopping])
def test_a_scheduler_outlives_ctrl_c(machine, tmp_path, kind):
    """One trial after the other, the best first: all others are stopped.

    No trial is running when it comes: that another is missing tells the interruption.
    """
    first = {"grace_period": 1}
    first |= {"reduction_factor": 2} if kind is ASHA else {"min_samples_required": 1}

    def interrupt(record):
        if (record.number, record.status) == (1, "stopped"):
            os.kill(os.getpid(), signal.SIGINT)

    seen, settings = Seen(interrupt), {"samples": 4, "scheduler": kind(**first)}
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, ladder, seen, **settings)
    assert seen == [(0, "completed"), (1, "stopped")]
    records = run(tmp_path, ladder, **settings)
    assert ends(records) == [("completed", 4), *[("stopped", 1)] * 3]
    assert signal.getsignal(signal.SIGINT) is former


def test_a_population_exchanges_checkpoints_and_changes_values(machine, tmp_path, log):
    settings = {"scheduler": PopulationBased(), "concurrent": None}
    settings["resources"] = Resources(cpus=0.5)  # they take turns
    # many steps: what goes on from a finished trial takes none with its new values
    records = run(tmp_path, Walk(log, steps=8), **settings)
    assert [record.number for record in records] == list(range(4))
    assert ends(records) == [("completed", 9)] * 4
    moved = changed = 0
    for record, way in zip(records, ways_of(log), strict=True):
        assert len(way) == 8
        assert record.metrics["loss"] == pytest.approx(-sum(x for _, x in way))
        assert all(0 <= x <= 1 for _, x in way)
        moved += {number for number, _ in way} != {record.number}
        changed += len({x for _, x in way}) > 1
    assert moved > 0
    assert changed > 0
    assert sorted(
        path.name for path in (tmp_path / "search").iterdir() if path.is_dir()
    ) == [f"{i:04d}" for i in range(4)]
    assert not list(tmp_path.rglob("checkpoint_*"))


# -- the whole search --------------------------------------------------------------


def test_a_search_and_the_same_search_again(machine, tmp_path, log):
    running, most = set(), []

    def look(record):
        (running.add if record.status == "running" else running.discard)(record.number)
        most.append(len(running))

    settings = {"concurrent": 2, "resources": Resources(cpus=0.2)}
    steps, again = Steps(log, pause=0.05, together=2), Seen()
    records = run(tmp_path, steps, Seen(look), **settings)
    assert max(most) == 2
    assert not list(tmp_path.rglob("checkpoint_*"))  # nobody needs them any more
    assert run(tmp_path, steps, again, **settings) == records
    assert again == [(number, "completed") for number in range(4)]
    assert all(set(times.values()) == {1} for times in steps_of(log).values())
    with pytest.raises(UserError, match="holds a search of 4 trials, not of 5"):
        run(tmp_path, steps, samples=5)


@pytest.mark.slow
def test_a_search_out_of_time_leaves_stopped_trials(machine, tmp_path, log):
    steps, settings = Steps(log, steps=100, pause=0.05), {"samples": 40}
    records = run(tmp_path, steps, hours=30 / 3600, **settings)
    assert 1 < len(records) < 40
    *whole, last = records
    assert ends(whole) == [("completed", 100)] * len(whole)
    assert last.status == "stopped"
    assert run(tmp_path, steps, hours=30 / 3600, **settings) == records
