"""The command `tune`, from its file to what it leaves behind."""

import json
import os
import statistics
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from tests.cli.conftest import EXPERIMENT, cli  # noqa: F401
from tests.tune.commands import SEARCH, rows_of, small
from tune import runs

ARMS = """
scheduler: {class_path: tune.ASHA, init_args: {reduction_factor: 2}}
optimizers:
  BBI:
    space: {lr: "LogUniform(1e-2, 0.5)", extra_energy: "Uniform(0, 2)"}
    published: {lr: 0.2, extra_energy: 1.0}
  SGD:
    space: {lr: "LogUniform(1e-2, 0.5)", momentum: [0.8, 0.9]}
repeat: {seeds: [1, 2, 3], metric: test/loss}
"""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures cost more than the searches here: only `searched` draws some."""
    monkeypatch.setattr(runs, "_draw", lambda *args: None)


class Searched:
    """A folder where `tune --config digits.yaml` has been run."""

    def __init__(self, place, run):
        self.place, self.folder = place, place / "logs/digits/version_0"
        (place / "digits.yaml").write_text(SEARCH + ARMS)
        self.result = run("tune", "--config", "digits.yaml")

    def rows(self):
        return rows_of(self.folder / "results.csv")

    def trials(self, *arms):
        return [path for arm in arms for path in sorted(self.folder.glob(f"{arm}/0*"))]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """One search of two optimizers, with published settings and repeats."""
    from lightning_ecd.__main__ import main

    place, before = tmp_path_factory.mktemp("searched"), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
        os.chdir(place)
        try:
            yield Searched(place, lambda *args: main(list(args)))
        finally:
            os.chdir(before)


def plugin(folder, tag):
    events = EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content
    return events, plugin_data_pb2.HParamsPluginData.FromString(content)


# -- what a search leaves behind ---------------------------------------------------


def test_the_folder_holds_tables_figures_and_configurations(searched):
    names = {path.name for path in searched.folder.iterdir()}
    assert names >= {
        *("search.json", "settings.json", "results.csv", "results.parquet"),
        *("best.json", "best_BBI.yaml", "best_SGD.yaml", "repeats.csv", "repeats.md"),
        *("history.png", "sensitivity.png", "parallel_BBI.png", "slices_SGD.png"),
        *("BBI", "SGD", "BBI_published", "BBI_repeated", "SGD_repeated"),
    }
    assert not names & {"SGD_published"}
    folders = [path.name for path in searched.trials("BBI", "SGD")]
    assert folders == ["0000", "0001", "0002"] * 2


def test_every_trial_is_a_row_with_its_values_and_metric(searched):
    rows = searched.rows()
    assert [(row["optimizer"], row["trial"]) for row in rows] == [
        *[("BBI", str(i)) for i in range(3)],
        *[("SGD", str(i)) for i in range(3)],
    ]
    assert {row["status"] for row in rows} == {"completed", "stopped"}
    for row in rows:
        config = yaml.safe_load((Path(row["folder"]) / "config.yaml").read_text())
        optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
        assert optimizer["lr"] == float(row["config/lr"])
        lines = rows_of(Path(row["folder"]) / "metrics.csv")
        logged = [line["val/accuracy"] for line in lines]
        last = [float(value) for value in logged if value][-1]
        assert float(row["val/accuracy"]) == pytest.approx(last, rel=1e-6)


def test_both_tables_are_the_same(searched):
    one = pd.read_csv(searched.folder / "results.csv")
    two = pd.read_parquet(searched.folder / "results.parquet")
    for name in ("error", "reason"):
        two[name] = two[name].replace("", None).astype(float)
    pd.testing.assert_frame_equal(one, two, check_dtype=False, rtol=1e-12)


@pytest.mark.parametrize("arm", ["BBI", "SGD"])
def test_the_best_configuration_fits_to_the_same_metric(arm, searched, cli):  # noqa: F811
    told = json.loads((searched.folder / "best.json").read_text())[arm]
    result = cli("fit", "--config", searched.folder / f"best_{arm}.yaml")
    assert (result.code, result.err) == (0, "")
    file = Path(f"logs/best_{arm}/version_0/checkpoints/last.ckpt")
    metrics = torch.load(file, weights_only=True)["metrics"]
    assert metrics["val/accuracy"] == told["val/accuracy"]
    row = [r for r in searched.rows() if r["optimizer"] == arm][told["trial"]]
    assert metrics["val/accuracy"] == float(row["val/accuracy"])
    assert metrics["val/loss"] == float(row["val/loss"])


def test_the_best_is_that_of_the_table(searched):
    told = json.loads((searched.folder / "best.json").read_text())
    for arm in ("BBI", "SGD"):
        rows = [row for row in searched.rows() if row["optimizer"] == arm]
        whole = [row for row in rows if row["status"] == "completed"]
        best = max(whole, key=lambda row: float(row["val/accuracy"]))
        assert told[arm]["trial"] == int(best["trial"])
        assert told[arm]["values"]["lr"] == float(best["config/lr"])


def test_published_settings_have_a_trial_of_their_own(searched):
    told = json.loads((searched.folder / "best.json").read_text())
    assert told["BBI"]["published"]["values"] == {"lr": 0.2, "extra_energy": 1.0}
    (folder,) = searched.trials("BBI_published")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
    assert (optimizer["lr"], optimizer["extra_energy"]) == (0.2, 1.0)
    assert 0 <= told["BBI"]["published"]["val/accuracy"] <= 1
    assert "published" not in told["SGD"]


def test_repeats_are_runs_of_the_best_trial_with_other_seeds(searched):
    told = json.loads((searched.folder / "best.json").read_text())
    for row in rows_of(searched.folder / "repeats.csv"):
        number = int(row["seed"]) - 1
        folder = searched.trials(f"{row['arm']}_repeated")[number]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        optimizer = config["model"]["init_args"]["optimizer"]["init_args"]
        seeds = {config["seed_everything"], config["data"]["init_args"]["seed"]}
        seeds.add(optimizer.get("seed", int(row["seed"])))
        assert seeds == {int(row["seed"])}
        assert optimizer["lr"] == told[row["arm"]]["values"]["lr"]
        tested = [line.get("test/loss") for line in rows_of(folder / "metrics.csv")]
        (loss,) = [float(value) for value in tested if value]
        assert float(row["value"]) == pytest.approx(loss, rel=1e-6)


def test_the_table_of_repeats_compares_the_means(searched):
    values = {"BBI": [], "SGD": []}
    for row in rows_of(searched.folder / "repeats.csv"):
        assert row["metric"] == "test/loss"
        values[row["arm"]].append(float(row["value"]))
    assert [len(found) for found in values.values()] == [3, 3]
    text = (searched.folder / "repeats.md").read_text()
    for found in values.values():
        assert f"{statistics.mean(found):.5g} ± {statistics.stdev(found):.2g}" in text
    p = stats.ttest_ind(values["SGD"], values["BBI"], equal_var=False).pvalue
    assert f"{p:.2g}" in text


def test_tensorboard_shows_values_and_metric_of_every_trial(searched):
    trials = searched.trials("BBI", "SGD", "BBI_published")
    assert len(trials) == 7
    rows = {row["folder"]: row for row in searched.rows()}
    for folder in trials:
        events, experiment = plugin(folder, "experiment")
        tags = {info.name.tag for info in experiment.experiment.metric_infos}
        assert "val/accuracy" in tags and "hp_metric" not in tags
        start = plugin(folder, "session_start_info")[1].session_start_info
        lr = start.hparams["optimizer/lr"].number_value
        scalar = events.Scalars("val/accuracy")[-1].value
        if str(folder) in rows:
            assert lr == float(rows[str(folder)]["config/lr"])
            found = float(rows[str(folder)]["val/accuracy"])
            assert scalar == pytest.approx(found, rel=1e-6)
        else:
            assert lr == 0.2


def test_tensorboard_shows_the_figures(searched):
    images = EventAccumulator(str(searched.folder)).Reload().Tags()["images"]
    assert {"history", "sensitivity", "parallel_BBI", "slices_BBI"} <= set(images)
    for file in searched.folder.glob("*.png"):
        assert file.read_bytes()[:4] == b"\x89PNG"


def test_a_finished_search_is_restored_without_a_run(searched, cli):  # noqa: F811
    tables = [
        (searched.folder / name).read_bytes() for name in ("results.csv", "repeats.csv")
    ]
    before = sorted(searched.folder.rglob("metrics.csv"))
    before += searched.folder.glob("s*.json")  # never rewritten: they could be lost
    times = [path.stat().st_mtime_ns for path in before]
    result = cli("tune", "--restore", searched.folder)
    assert (result.code, result.err) == (0, "")
    assert tables == [
        (searched.folder / name).read_bytes() for name in ("results.csv", "repeats.csv")
    ]
    assert times == [path.stat().st_mtime_ns for path in before]
    assert sorted(searched.folder.rglob("metrics.csv")) == before[:-2]
    assert not Path("logs").exists()


# -- what is printed ---------------------------------------------------------------


def test_what_is_printed_says_what_was_found_and_what_to_do(tmp_path, cli):  # noqa: F811
    arms = "optimizers: {BBI: {published: {lr: 0.2}}}\n"
    result = cli("tune", "--config", small(tmp_path, arms))
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert sum(line.startswith("BBI: trial ") for line in lines) == 2
    assert sum(line.startswith("BBI, published: trial ") for line in lines) == 1
    assert any("BBI" in line and "2 completed" in line for line in lines)
    assert any("BBI, published" in line and "lr 0.2" in line for line in lines)
    folder = tmp_path / "logs/small/version_0"
    assert f"best of BBI: lightning-ecd fit --config {folder}/best_BBI.yaml" in lines
    assert f"results: {folder}/results.csv" in lines
    assert "Seed set" not in result.out


def test_a_second_search_gets_a_folder_of_its_own_and_equals_the_first(tmp_path, cli):  # noqa: F811
    file = small(tmp_path)
    tables = []
    for version in range(2):
        assert cli("tune", "--config", file).code == 0
        table = pd.read_csv(f"logs/small/version_{version}/results.csv")
        tables.append(table.drop(columns=["seconds", "folder"]))
    pd.testing.assert_frame_equal(*tables)


def test_flags_override_the_file(tmp_path, cli):  # noqa: F811
    flags = ["--samples=1", "--name=other", "--storage=kept", "--searcher=tune.Random"]
    flags += [
        "--searcher.seed=5",
        "--space.lr=[0.125]",
        "--arguments+=--data.batch_size=25",
    ]
    assert cli("tune", "--config", small(tmp_path), *flags).code == 0
    folder = tmp_path / "kept/other/version_0"
    (row,) = rows_of(folder / "results.csv")
    assert float(row["config/lr"]) == 0.125
    config = yaml.safe_load((folder / "best_BBI.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 25
    assert config["trainer"]["limit_train_batches"] == 4
    assert not Path("logs").exists()


def test_files_are_found_beside_the_search(tmp_path, cli, monkeypatch):  # noqa: F811
    (tmp_path / "configs").mkdir()
    file = small(tmp_path / "configs")
    text = file.read_text().replace(EXPERIMENT, "base.yaml")
    file.write_text(text.replace("samples: 2", "samples: 1"))
    root = Path(EXPERIMENT).parents[1]
    base = Path(EXPERIMENT).read_text().replace(": ../", f": {root}/")
    (tmp_path / "configs" / "base.yaml").write_text(base)
    assert cli("tune", "--config", "configs/small.yaml").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    restored = cli("tune", "--restore", tmp_path / "logs/small/version_0")
    assert (restored.code, restored.err) == (0, "")


def test_diverged_trials_are_counted_and_are_not_the_best(tmp_path, cli):  # noqa: F811
    arms = "optimizers: {SGD: {space: {lr: [1.0e+30, 0.1]}}}\nsearcher: tune.Grid\n"
    file = small(tmp_path, arms)
    text = file.read_text().replace('space: {lr: "LogUniform(0.01, 0.5)"}\n', "")
    file.write_text(text)
    result = cli("tune", "--config", file)
    assert (result.code, result.err) == (0, "")
    assert "1 diverged" in result.out and "1 completed" in result.out
    bad, good = rows_of("logs/small/version_0/results.csv")
    assert (bad["status"], bad["val/accuracy"]) == ("diverged", "")
    assert json.loads(Path("logs/small/version_0/best.json").read_text())["SGD"][
        "values"
    ] == {"lr": float(good["config/lr"])}


# -- studies -----------------------------------------------------------------------


def test_the_best_of_a_study_runs_to_the_same_number(tmp_path, cli):  # noqa: F811
    (tmp_path / "study.yaml").write_text(
        "function: {class_path: lightning_ecd.functions.Quadratic}\n"
        "optimizers:\n"
        "  HB:\n    class_path: lightning_ecd.optimizers.HeavyBall\n"
        "    init_args: {lr: 0.1, momentum: 0.0}\n"
        "  BBI: {class_path: lightning_ecd.optimizers.BBI}\n"
        "steps: 20\nrandom_starts: 5\n"
    )
    (tmp_path / "search.yaml").write_text(
        "study: study.yaml\nmetric: best_median\nmode: min\nbackend: local\n"
        "samples: 4\noptimizers:\n"
        "  HB:\n    space: {lr: 'LogUniform(1e-3, 0.1)', momentum: 'Decay(0.1, 5)'}\n"
        "    published: {lr: 0.05, momentum: 0.5}\n"
        "  BBI: {space: {lr: 'LogUniform(1e-3, 0.1)'}}\n"
        "repeat: {seeds: [1, 2]}\n"
    )
    result = cli("tune", "--config", "search.yaml")
    assert (result.code, result.err) == (0, ""), result.err
    folder = tmp_path / "logs/search/version_0"
    told = json.loads((folder / "best.json").read_text())
    for arm in ("HB", "BBI"):
        best = folder / f"best_{arm}.yaml"
        assert cli("trajectories", "--config", best).code == 0
        summary = Path(f"logs/best_{arm}/version_0/summary.json")
        numbers = json.loads(summary.read_text())
        assert list(numbers) == [arm]
        assert numbers[arm]["best_median"] == told[arm]["best_median"]
    assert told["HB"]["published"]["values"] == {"lr": 0.05, "momentum": 0.5}
    rows = rows_of(folder / "repeats.csv")
    assert [(row["arm"], row["seed"]) for row in rows] == [
        *[("HB", "1"), ("HB", "2"), ("BBI", "1"), ("BBI", "2")]
    ]
    assert len({row["value"] for row in rows}) == 4
