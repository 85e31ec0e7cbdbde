"""`lightning-ecd trajectories`: studies of many runs."""

import csv
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli.conftest import ROOT

STUDIES = [
    file
    for file in sorted((ROOT / "configs" / "study").glob("*.yaml"))
    if "function:" in file.read_text()  # the others are for the command `theory`
]
BASINS = ROOT / "configs" / "study" / "two_basins_ratio.yaml"


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_runs(file, cli):
    result = cli("trajectories", "--config", file, "--steps=5", "--runs=2")
    assert (result.code, result.err) == (0, "")
    folder = Path("logs", file.stem, "version_0")
    assert f"logs: {folder}" in result.out
    assert (folder / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_states_published_and_own_numbers(file):
    head = file.read_text().split("function:")[0]
    assert "# Published" in head and "# Ours" in head


def test_writes_tables_figures_and_tensorboard(cli):
    result = cli("trajectories", "--config", BASINS, "--runs=30", "--name=basins")
    assert result.code == 0, result.err
    folder = Path("logs/basins/version_0")
    summary = json.loads((folder / "summary.json").read_text())["BBI"]
    assert summary["basin_1"] + summary["basin_2"] == 30
    assert summary["ratio"] == pytest.approx(summary["basin_1"] / summary["basin_2"])
    lines = (folder / "runs_BBI.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert [row["basin"] for row in rows].count("1") == summary["basin_1"]
    assert {f"{name}.png" for name in ("surface_BBI", "ratio_BBI", "curves")} <= {
        file.name for file in folder.iterdir()
    }
    board = EventAccumulator(str(folder), {"images": 0}).Reload()
    assert {"surface_BBI", "ratio_BBI", "curves"} <= set(board.Tags()["images"])
    assert {"BBI/median_loss", "BBI/running_ratio"} <= set(board.Tags()["scalars"])
    settings = json.loads((folder / "config.json").read_text())
    assert settings["optimizers"]["BBI"]["init_args"]["lr"] == 0.01


def test_a_second_run_gets_a_folder_of_its_own_and_equals_the_first(cli):
    for version in (0, 1):
        result = cli("trajectories", "--config", BASINS, "--runs=3", "--steps=50")
        assert f"version_{version}" in result.out
    tables = [
        Path(f"logs/two_basins_ratio/version_{i}/runs_BBI.csv").read_text()
        for i in (0, 1)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps=0"], ["steps must be at least 1", "0"]),
        (["--runs=-1"], ["runs must be at least 1"]),
        (["--start=[1.0]"], ["start must have 2 coordinates, got 1"]),
        (["--box=[3, 1]"], ["box must be (lowest, highest)"]),
        (["--start=[1.0, 2.0]", "--random_starts=3"], ["exclude each other"]),
        (["--steps=many"], ["steps", "many"]),
        (["--stepz=3"], ["stepz", "did you mean --steps"]),
        (["--dtype=float16"], ["dtype", "float16"]),
        (["--function=lightning_ecd.functions.Ackley"], ["has no basins"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_bad_input_is_one_line(arguments, words, cli):
    result = cli("trajectories", "--config", BASINS, *arguments)
    assert result.code == 2
    for word in words:
        assert word in result.error
    assert not Path("logs").exists()


def test_ctrl_c_is_one_line(cli, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_ecd.studies.run", interrupt)
    result = cli("trajectories", "--config", BASINS)
    assert result.code == 130
    assert "interrupted" in result.error and not Path("logs").exists()
