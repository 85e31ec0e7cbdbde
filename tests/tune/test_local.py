"""Searches in this process: what they survive, and that they lose nothing."""

import json
import math
import shutil
import time

import pytest

from lightning_ecd.errors import Diverged, UserError
from tests.tune.toys import SPACE, Scripted, Walk, job, nobody, seen
from tune import ASHA, Grid, Optuna, Random, Space, local


class Boom(Exception):
    pass


class Once:
    """Raises an error, the first time that a trial comes to a step."""

    def __init__(self, number, step, error=None):
        self.place, self.error = (number, step), error or Boom("no\nmemory")
        self.times = 0

    def __call__(self, trial, step):
        if (trial.number, step) == self.place and not self.times:
            self.times += 1
            raise self.error


class Always(Once):
    def __call__(self, trial, step):
        if (trial.number, step) == self.place:
            self.times += 1
            raise self.error


def run(folder, objective, watch=nobody, **settings):
    return local.run(job(objective, **settings), folder, watch)


def journal(folder):
    lines = (folder / "trials.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def statuses(records):
    return [record.status for record in records]


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
        time.sleep(0.02 if trial.number else 0.0)

    walk = Walk(before, steps=1000, saves=False)
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


# -- interrupted -------------------------------------------------------------------


def search():
    """Settings of a search whose decisions depend on all that happened before."""
    pytest.importorskip("optuna", reason="Optuna needs the package optuna")
    return {
        "searcher": Optuna(startup=3),
        "scheduler": ASHA(reduction_factor=2),
        "samples": 7,
    }


@pytest.fixture
def whole(tmp_path):
    """Folder, records and steps of a search that nobody interrupted."""
    walk = Walk()
    records = run(tmp_path / "whole", walk, **search())
    assert {"stopped", "completed"} == set(statuses(records))
    return tmp_path / "whole", list(map(seen, records)), walk.walked


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    share, cut, whole, tmp_path
):
    """Also if the end of the journal's last line is lost."""
    expected, walked = whole[1:]
    walk = Walk(Once(*walked[int(share * len(walked))], KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", walk, **search())
    text = (tmp_path / "cut" / "trials.jsonl").read_text()
    (tmp_path / "cut" / "trials.jsonl").write_text(text[: len(text) - cut])
    records = run(tmp_path / "cut", walk, **search())
    assert list(map(seen, records)) == expected
    if cut == 0:
        assert walk.walked == walked  # nothing was done twice
    assert strip(journal(tmp_path / "cut")) == strip(journal(whole[0]))


def strip(events):
    """Events without their times."""
    for event in events:
        event.get("report", {}).pop("time_total_s", None)
    return events


def test_it_does_not_matter_when_it_was_interrupted(whole, tmp_path):
    """By the watcher, who is told between any two things that happen."""
    settings, calls = search(), []
    run(tmp_path / "count", Walk(), calls.append, **settings)
    for last in range(len(calls)):
        left = iter(range(last))

        def watch(record, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt

        folder = tmp_path / f"after_{last}"
        with pytest.raises(KeyboardInterrupt):
            run(folder, Walk(), watch, **settings)
        records = run(folder, Walk(), **settings)
        assert list(map(seen, records)) == whole[1], f"watcher's call {last}"


def test_it_does_not_matter_how_much_of_the_journal_is_lost(whole, tmp_path):
    """The checkpoints are those of the whole search, ahead of the journal."""
    settings, (folder, expected, _) = search(), whole
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        shutil.copytree(folder, tmp_path / f"kept_{kept}")
        torn = lines[kept][: len(lines[kept]) // 2] if kept < len(lines) else ""
        file = tmp_path / f"kept_{kept}" / "trials.jsonl"
        file.write_text("".join(lines[:kept]) + torn)
        records = run(tmp_path / f"kept_{kept}", Walk(), **settings)
        assert list(map(seen, records)) == expected, f"{kept} lines kept"
        assert len(journal(file.parent)) == len(lines)


def test_an_error_while_a_checkpoint_is_written_loses_no_report(tmp_path):
    whole = run(tmp_path / "whole", Walk())
    full = []

    class Full(Walk):
        def __call__(self, trial):
            report = trial.report

            def told(metrics, save, finished):
                def failing(folder):
                    if trial.number == 1 and not full:
                        full.append(folder)
                        raise OSError("no space left")
                    save(folder)

                report(metrics, failing, finished)

            trial.report = told
            super().__call__(trial)

    records = run(tmp_path / "full", Full())
    assert full
    assert list(map(seen, records)) == list(map(seen, whole))
    told = [e for e in journal(tmp_path / "full") if "report" in e and e["trial"] == 1]
    assert [e["report"]["training_iteration"] for e in told] == [1, 2, 3, 4]


def test_a_finished_search_runs_nothing_again(whole):
    walk = Walk()
    records = run(whole[0], walk, **search())
    assert list(map(seen, records)) == whole[1]
    assert walk.walked == []


def test_a_search_can_be_made_longer(tmp_path):
    settings = search()
    short = run(tmp_path / "short", Walk(), **settings | {"samples": 4})
    longer = run(tmp_path / "short", Walk(), **settings)
    assert list(map(seen, longer))[:4] == list(map(seen, short))
    assert list(map(seen, longer)) == list(
        map(seen, run(tmp_path / "whole", Walk(), **settings))
    )


@pytest.mark.parametrize(
    "other",
    [
        {"searcher": Random(seed=1)},
        {"space": Space({"x": "Uniform(-1, 2)", "y": "LogUniform(1e-3, 1)"})},
        {"space": Space({"x": "Uniform(-1, 1)"})},
    ],
)
def test_a_changed_search_is_refused(other, tmp_path):
    run(tmp_path, Scripted([1.0], [2.0]), samples=2)
    before = (tmp_path / "trials.jsonl").read_bytes()
    with pytest.raises(UserError, match="0000: the search now suggests .* cannot go"):
        run(tmp_path, Scripted([1.0], [2.0]), samples=2, **other)
    assert (tmp_path / "trials.jsonl").read_bytes() == before


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
