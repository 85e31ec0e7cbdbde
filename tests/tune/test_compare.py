"""The command `compare`, from its file to the report."""

import inspect
import json
import os
import re
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from lightning_ecd.optimizers import BBI
from tests.cli.conftest import EXPERIMENT, ROOT, cli  # noqa: F401
from tests.tune.commands import rows_of
from tune import comparison_figures, report, runs
from tune.compare import read
from tune.comparison import Comparison, Contest
from tune.search import Arm

FUNCTION = ROOT / "configs" / "experiment" / "bbi_zakharov.yaml"
#: Two tasks of a second or less a trial.
FILE = f"""
tasks:
  zakharov:
    experiment: {FUNCTION}
    arguments: ["--trainer.callbacks=null"]
    metric: val/best
    mode: min
    evaluations: 24
    every: 4
  digits:
    experiment: {EXPERIMENT}
    arguments:
      - --trainer.limit_val_batches=1
      - --trainer.accelerator=cpu
    evaluations: 6
    every: 3
optimizers:
  AdamW: {{space: {{lr: "LogUniform(1e-3, 1)"}}}}
  SAM: {{space: {{lr: "LogUniform(1e-6, 1e-1)"}}}}
  Own:
    optimizer: HeavyBall
    arguments: ["--model.optimizer.momentum=0.5"]
    space: {{lr: "LogUniform(1e-6, 1e-1)"}}
trials: 2
studies: 3
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder where the comparison above has been run."""
    place = tmp_path_factory.mktemp("compared")
    (place / "small.yaml").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
        patch.chdir(place)
        assert run("compare", "--config", "small.yaml") == 0
    return place / "logs" / "small" / "version_0"


def run(*args):
    """Run a command in this process; return its exit code."""
    from lightning_ecd.__main__ import main

    try:
        main([str(word) for word in args])
    except SystemExit as end:
        return end.code or 0
    return 0


def test_every_optimizer_has_the_same_trials_of_every_task(compared):
    rows = rows_of(compared / "trials.csv")
    assert len(rows) == 2 * 3 * 2 * 3
    assert {row["status"] for row in rows} <= {"completed", "diverged"}
    for task in ("zakharov", "digits"):
        for name in ("AdamW", "SAM", "Own"):
            own = [r for r in rows if (r["task"], r["optimizer"]) == (task, name)]
            assert [int(r["study"]) for r in own] == [0, 0, 1, 1, 2, 2]
            # one search space for all tasks: the same points
            other = [r for r in rows if r["optimizer"] == name and r["task"] != task]
            assert [r["config/lr"] for r in own] == [r["config/lr"] for r in other]
    # studies are of other points
    assert len({row["config/lr"] for row in rows if row["optimizer"] == "SAM"}) == 6


def test_seeds_are_those_of_the_study(compared):
    for file in (compared / "tasks" / "digits").rglob("000*/config.yaml"):
        settings = yaml.safe_load(file.read_text())
        number = int(file.parent.name)
        assert settings["seed_everything"] == number // 2
        assert settings["data"]["init_args"]["seed"] == number // 2
        optimizer = settings["model"]["init_args"]["optimizer"]
        if "HeavyBall" in optimizer["class_path"]:
            assert optimizer["init_args"]["momentum"] == 0.5


def test_trials_cost_what_they_may(compared):
    curves = pd.read_csv(compared / "curves.csv")
    trials = pd.read_csv(compared / "trials.csv")
    ended = trials[trials["status"] == "completed"]
    keys = ["task", "optimizer", "trial"]
    for key, curve in curves.groupby(keys):
        if key not in set(map(tuple, ended[keys].to_numpy())):
            continue
        expected = {"zakharov": [4, 8, 12, 16, 20, 24], "digits": [3, 6]}[key[0]]
        if key[:2] == ("digits", "SAM"):  # two evaluations a step
            expected = [4, 6]
        assert curve["evaluations"].tolist() == expected
        assert curve["seconds"].is_monotonic_increasing


def test_curves_are_those_of_the_trials_own_logs(compared):
    curves = pd.read_csv(compared / "curves.csv")
    trial = compared / "tasks" / "zakharov" / "AdamW" / "0003"
    own = pd.read_csv(next(trial.rglob("metrics.csv")))["val/best"].dropna()
    chosen = curves[
        (curves["task"] == "zakharov")
        & (curves["optimizer"] == "AdamW")
        & (curves["trial"] == 3)
    ]
    assert chosen["value"].tolist() == own.tolist() and len(own) == 6
    assert set(chosen["study"]) == {1}


def test_the_report_is_one_page_that_tells_everything(compared):
    page = (compared / "report.html").read_text()
    assert len(re.findall(r'<img alt="\w+" src="data:image/png;base64,', page)) == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    text = (compared / "report.md").read_text()
    for words in ("AdamW", "SAM", "Own", "zakharov", "digits", "24 evaluations"):
        assert words in page and words in text
    assert "torch: " in text and "cores: " in text and "LogUniform(1e-6, 1e-1)" in text
    assert "## Failures" in text
    scores = read(compared)[0]
    table = pd.read_csv(compared / "tables" / "scores.csv", index_col=0)
    assert set(table.index) == {"AdamW", "SAM", "Own"}
    assert table["evaluations"].max() > 0
    target = scores.target("digits")
    assert f"digits {target:.4g}" in text
    assert list(compared.glob("events.out.tfevents.*"))


def test_a_report_is_made_anew_from_the_tables_alone(compared, monkeypatch, capsys):
    before = (compared / "report.md").read_text()
    for name in ("report.md", "report.html"):
        (compared / name).unlink()
    monkeypatch.setattr(runs, "run", None)  # nothing is run
    assert run("compare", "--report", compared) == 0
    assert (compared / "report.md").read_text() == before
    assert "report:" in capsys.readouterr().out


def test_an_interrupted_comparison_goes_on_to_the_same(compared, tmp_path, monkeypatch):
    (tmp_path / "small.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    from tune.objectives import Fit

    whole, calls = Fit.__call__, []

    def cut(self, trial):
        calls.append(trial.number)
        if len(calls) == 9:
            raise KeyboardInterrupt
        whole(self, trial)

    monkeypatch.setattr(Fit, "__call__", cut)
    assert run("compare", "--config", "small.yaml") == 130
    monkeypatch.setattr(Fit, "__call__", whole)
    folder = tmp_path / "logs" / "small" / "version_0"
    assert run("compare", "--restore", folder) == 0
    columns = ["task", "optimizer", "study", "trial", "evaluations", "value"]
    ours, theirs = (pd.read_csv(p / "curves.csv")[columns] for p in (folder, compared))
    pd.testing.assert_frame_equal(ours, theirs)


def test_trials_that_fail_are_told_and_end_nothing(tmp_path, monkeypatch):
    settings = yaml.safe_load(FILE)
    del settings["tasks"]["digits"]
    # the second value is tried first, to see that trials can run
    settings["optimizers"]["SAM"]["space"]["lr"] = [-1.0, 1e-6]
    (tmp_path / "failing.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    assert run("compare", "--config", "failing.yaml") == 0
    folder = tmp_path / "logs" / "failing" / "version_0"
    rows = [r for r in rows_of(folder / "trials.csv") if r["optimizer"] == "SAM"]
    failed = [row for row in rows if row["status"] == "failed"]
    assert 0 < len(failed) < len(rows)
    assert "lr must lie in" in (folder / "report.md").read_text().split("Failures")[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": 0}, ["trials", "at least 1"]),
        ({"studies": 0}, ["studies", "at least 1"]),
        ({"share": 0.0}, ["share"]),
        ({"baselines": ["Adam"]}, ["baselines", "AdamW, Own, SAM", "Adam"]),
        ({"optimizers": {"AdamW": {}}}, ["optimizers", "at least 2"]),
        ({"optimizers": {"Nope": {}, "AdamW": {}}}, ["Nope"]),
        ({"tasks": {}}, ["tasks", "at least 1"]),
        ({"tasks": {"x": {"experiment": "gone.yaml"}}}, ["gone.yaml"]),
        ({"tasks": {"x": {"experiment": str(FUNCTION), "cost": 3}}}, ["cost"]),
        ({"tasks": {"x": {"experiment": str(FUNCTION)}}}, ["val/accuracy", "val/best"]),
        ({"trial": 3}, ["trial"]),
        (
            {"tasks": {"x": {"experiment": str(FUNCTION), "metric": "train/loss"}}},
            ["metric", "val/"],
        ),
        ({"tasks": {"a/b": {"experiment": str(FUNCTION)}}}, ["a/b", "letters"]),
        ({"optimizers": {"SGD": {"published": {"lr": 1.0}}, "AdamW": {}}}, ["SGD"]),
        ({"optimizers": {"SGD": {"space": {}}, "AdamW": {}}}, ["SGD", "space"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line_that_names_it(changes, words, tmp_path, cli):  # noqa: F811
    settings = {**yaml.safe_load(FILE), **changes}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(settings))
    result = cli("compare", "--config", "bad.yaml")
    assert result.code == 2
    for word in words:
        assert word in result.error
    assert not list(tmp_path.rglob("metrics.csv"))


def test_the_last_task_is_checked_before_the_first_is_run(tmp_path, cli):  # noqa: F811
    settings = yaml.safe_load(FILE)
    settings["tasks"]["digits"]["arguments"] = ["--trainer.max_tepochs=1"]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(settings))
    result = cli("compare", "--config", "bad.yaml")
    assert result.code == 2 and "max_tepochs" in result.error
    assert not list(tmp_path.rglob("metrics.csv"))


def test_an_experiment_lends_its_own_optimizer_nothing():
    """That of Zakharov's is BBI, with an f_min of 1e-22."""
    ranges = Arm(space={"lr": "LogUniform(1e-3, 1)"})
    task = Contest(str(FUNCTION), "val/best", "min", arguments=[])
    comparison = Comparison(
        {"zakharov": task},
        {"BBI": ranges, "Own": replace(ranges, optimizer="BBI")},
        ["BBI"],
    )
    settings = comparison.searches["zakharov"].settings()
    for own in settings.values():
        given = own["model"]["init_args"]["optimizer"]["init_args"]
        defaults = inspect.signature(BBI).parameters
        assert {k: defaults[k].default for k in given} == given


@pytest.mark.parametrize("flag", ["--restore", "--report"])
def test_folders_without_a_comparison_are_refused(flag, tmp_path, cli):  # noqa: F811
    result = cli("compare", flag, tmp_path)
    assert result.code == 2
    assert flag.strip("-") in result.error and "comparison.json" in result.error


def test_damaged_tables_are_refused(compared, tmp_path, cli):  # noqa: F811
    for name in ("comparison.json", "trials.csv"):
        (tmp_path / name).write_bytes((compared / name).read_bytes())
    result = cli("compare", "--report", tmp_path)
    assert result.code == 2 and "curves.csv" in result.error
    (tmp_path / "curves.csv").write_text("task,optimizer\nzakharov,AdamW\n")
    result = cli("compare", "--report", tmp_path)
    assert result.code == 2 and "damaged" in result.error
    (tmp_path / "comparison.json").write_text("{")
    result = cli("compare", "--report", tmp_path)
    assert result.code == 2 and "damaged" in result.error


def test_names_that_look_like_values_stay_names(compared, tmp_path):
    for name in ("comparison.json", "trials.csv", "curves.csv"):
        text = (compared / name).read_text()
        text = text.replace("SAM", "None").replace("digits", "1")
        (tmp_path / name).write_text(text)
    scores, content = read(tmp_path)
    assert scores.optimizers == ["AdamW", "None", "Own"]
    assert scores.tasks == ["zakharov", "1"]
    report.write(tmp_path, scores, content)
    assert "1: " in (tmp_path / "report.md").read_text()


def test_a_report_stands_without_a_single_validation(compared, tmp_path):
    for name in ("comparison.json", "trials.csv"):
        (tmp_path / name).write_bytes((compared / name).read_bytes())
    header = (compared / "curves.csv").read_text().splitlines()[0]
    (tmp_path / "curves.csv").write_text(header + "\n")
    assert run("compare", "--report", tmp_path) == 0
    assert "nan" in (tmp_path / "report.md").read_text()


def test_every_shipped_comparison_says_what_it_is_and_can_be_built():
    from tune.compare import build, described

    files = sorted((ROOT / "configs" / "comparison").glob("*.yaml"))
    assert files
    for file in files:
        head = [line for line in file.read_text().splitlines() if line[:1] == "#"]
        assert any(line.startswith("# Ours") for line in head)
        settings, name = described(["--config", str(file)])
        comparison = build(settings)
        assert name == file.stem and comparison.baselines
        assert all(os.path.isfile(t.experiment) for t in comparison.tasks.values())
        settings["optimizers"] = {"AdamW": settings["optimizers"]["AdamW"], "BBI": {}}
        settings["baselines"] = ["AdamW"]
        for search in build(settings).searches.values():
            assert set(search.settings()) == {"AdamW", "BBI"}  # their flags are known


def test_the_machine_is_told():
    found = report.machine()
    assert found["processor"] and found["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_figures_stand_without_values(compared):
    """All trials diverged: nothing to draw, but no error."""
    scores = read(compared)[0]
    scores.curves = scores.curves.iloc[:0]
    for draw in ("profiles", "curves", "sensitivity"):
        assert getattr(comparison_figures, draw)(scores).axes
