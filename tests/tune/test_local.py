"""Searches in this process: what they survive, and that they lose nothing."""

import math
import time

import pytest

from lightning_ecd.errors import Diverged, UserError
from tests.tune.toys import SPACE, Once, Scripted, Walk, journal, run, seen, statuses
from tune import (
    ASHA,
    Grid,
    Optuna,
    Random,
    Space,
)


class Always(Once):
    def __call__(self, trial, step):
        if (trial.number, step) == self.place:
            self.times += 1
            raise self.error


# -- a search ----------------------------------------------------------------------


def test_records_tell_what_was_tried_and_what_came_of_it(tmp_path):
    records = run(tmp_path / "toy", Scripted([3.0, 2.0], [1.0]), samples=2)
    assert [(r.arm, r.number, r.status, r.reports) for r in records] == [
        *[("toy", 0, "completed", 2), ("toy", 1, "completed", 1)]
    ]
    assert [record.metrics for record in records] == [{"loss": 2.0}, {"loss": 1.0}]
    searcher = Random().build(SPACE, "loss", "min")
    expected = [SPACE.values(searcher.suggest(str(i))) for i in range(2)]
    assert [record.values for record in records] == expected
    folders = [tmp_path / "toy" / name for name in ("0000", "0001")]
    assert [record.folder for record in records] == list(map(str, folders))
    assert all(folder.is_dir() for folder in folders)


def test_the_journal_has_a_line_for_everything(tmp_path):
    records = run(tmp_path, Scripted([3.0, 2.0]), samples=1)
    point, *reports, end = journal(tmp_path)
    assert point == {"trial": 0, "point": records[0].values}
    assert [report["report"]["loss"] for report in reports] == [3.0, 2.0]
    assert end == {"trial": 0, "end": "completed", "error": ""}


def test_a_watcher_sees_every_change(tmp_path):
    told = []

    def watch(record):
        told.append((record.number, record.reports, record.status))

    run(tmp_path, Scripted([3.0, 2.0]), watch, samples=1)
    assert told[0] == (0, 0, "running") and told[-1] == (0, 2, "completed")
    assert [entry for entry in told if entry[2] == "running"] == [
        *[(0, 0, "running"), (0, 1, "running")]
    ]


def test_a_grid_ends_the_search_though_more_was_asked_for(tmp_path):
    space = Space({"x": [0.0, 0.5], "y": [0.1]})
    records = run(tmp_path, Walk(), space=space, searcher=Grid(), samples=9)
    assert [record.values["x"] for record in records] == [0.0, 0.5]


def test_the_budget_of_hours_ends_the_running_trial_and_begins_no_other(tmp_path):
    def before(trial, step):
        time.sleep(0.02)

    walk = Walk(before, steps=1000, saves=False)  # 20 seconds, were it let
    (record,) = run(tmp_path, walk, hours=0.1 / 3600)
    assert record.status == "stopped"
    assert 1 <= record.reports < 1000
    assert record.seconds == pytest.approx(0.1, abs=0.5)


# -- crashes -----------------------------------------------------------------------


def test_a_crashed_trial_goes_on_from_its_checkpoint(tmp_path):
    whole = run(tmp_path / "whole", Walk())
    walk = Walk(Once(1, 3))
    records = run(tmp_path / "crashed", walk)
    assert [step for number, step in walk.walked if number == 1] == [1, 2, 3, 4]
    assert list(map(seen, records)) == list(map(seen, whole))


def test_a_trial_without_checkpoints_begins_again_and_tells_nothing_twice(tmp_path):
    whole = run(tmp_path / "whole", Walk(saves=False))
    walk = Walk(Once(1, 3), saves=False)
    records = run(tmp_path / "crashed", walk)
    assert [step for number, step in walk.walked if number == 1] == [1, 2, 1, 2, 3, 4]
    assert list(map(seen, records)) == list(map(seen, whole))
    told = [e for e in journal(tmp_path / "crashed") if e["trial"] == 1]
    counts = [e["report"]["training_iteration"] for e in told if "report" in e]
    assert counts == [1, 2, 3, 4]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_trial_that_always_crashes_fails_and_the_search_goes_on(retries, tmp_path):
    always = Always(1, 2)
    records = run(tmp_path, Walk(always), retries=retries)
    assert statuses(records) == ["completed", "failed", "completed", "completed"]
    assert always.times == retries + 1
    assert records[1].error == "Boom: no"
    assert records[1].reports == 1
    text = (tmp_path / "0001" / "error.txt").read_text()
    assert "Traceback" in text and "memory" in text
    again = run(tmp_path, Walk(always), retries=retries)
    assert list(map(seen, again)) == list(map(seen, records))
    assert always.times == retries + 1  # it has failed for good


def test_a_failed_trial_ends_the_search_if_it_shall(tmp_path):
    walk = Walk(Always(1, 2))
    with pytest.raises(UserError, match="trial 1 failed: Boom: no"):
        run(tmp_path, walk, stop_on_failure=True)
    assert max(number for number, _ in walk.walked) == 1


def test_what_the_user_can_mend_is_not_tried_again(tmp_path):
    always = Always(1, 1, UserError("there is no data"))
    records = run(tmp_path, Walk(always))
    assert statuses(records)[:2] == ["completed", "failed"]
    assert records[1].error == "UserError: there is no data"
    assert always.times == 1


@pytest.mark.parametrize("scheduler", [None, ASHA(reduction_factor=2)])
def test_searcher_and_scheduler_survive_failed_trials(scheduler, tmp_path):
    pytest.importorskip("optuna", reason="Optuna needs the package optuna")
    settings = {"searcher": Optuna(startup=2), "scheduler": scheduler, "samples": 6}
    records = run(tmp_path, Walk(Always(1, 2)), retries=0, **settings)
    assert len(records) == 6
    assert records[1].status in ("failed", "stopped")


@pytest.mark.parametrize(
    ("objective", "error"),
    [
        (lambda trial: None, "without its last report"),
        (lambda trial: trial.report({"loss": 1.0}), "without its last report"),
        (lambda trial: trial.report({"a": 1.0, "b": 2.0}), "no loss; it reports a, b"),
    ],
)
def test_an_objective_that_does_not_report_as_it_should_has_failed(
    objective, error, tmp_path
):
    (record,) = run(tmp_path, objective, samples=1)
    assert record.status == "failed"
    assert error in record.error


# -- divergence --------------------------------------------------------------------


class Spied(Random):
    """Remembers what a searcher of Ray's is told of every trial in the end."""

    def build(self, space, metric, mode):
        searcher = super().build(space, metric, mode)
        self.told = []
        searcher.on_trial_complete = lambda name, result=None, error=False: (
            self.told.append((name, result and result[metric], error))
        )
        return searcher


def raises(trial):
    raise Diverged("step 3: the loss is nan")


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "diverge",
    [
        raises,
        lambda trial: trial.report({"loss": math.nan, "epoch": 1.0}, finished=True),
        lambda trial: trial.report({"loss": math.inf}),
        lambda trial: trial.report({"loss": -math.inf}),
    ],
    ids=["raised", "nan", "inf", "-inf"],
)
def test_divergence_is_recorded_as_nan_and_told_as_the_worst(diverge, mode, tmp_path):
    searcher = Spied()

    def objective(trial):
        trial.report({"loss": 2.0})
        if trial.number == 1:
            diverge(trial)
        else:
            trial.report({"loss": 1.0}, finished=True)

    settings = {"searcher": searcher, "mode": mode, "samples": 3}
    records = run(tmp_path, objective, **settings)
    assert statuses(records) == ["completed", "diverged", "completed"]
    assert math.isnan(records[1].metrics["loss"])
    assert records[1].error == ""
    worst = math.inf if mode == "min" else -math.inf
    assert searcher.told == [("0", 1.0, False), ("1", worst, False), ("2", 1.0, False)]
    again = run(tmp_path, objective, **settings)
    assert list(map(seen, again)) == list(map(seen, records))
    assert searcher.told[1] == ("1", worst, False)


# -- speed -------------------------------------------------------------------------


def test_a_trial_costs_little_of_its_own(tmp_path, capsys):
    trials = 200

    def objective(trial):
        trial.report({"loss": trial.values["x"] ** 2}, finished=True)

    begin = time.perf_counter()
    records = run(tmp_path, objective, samples=trials)
    spent = (time.perf_counter() - begin) / trials
    with capsys.disabled():
        print(f"\na trial in this process: {1e3 * spent:.2f} ms of its own")
    assert len(records) == trials
    assert spent < 0.03
