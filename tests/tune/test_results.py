"""Tables and best configurations that a search leaves behind."""

import json
import math

import pandas as pd
import pytest
import yaml

from tune import results
from tune.trial import Record


def record(arm, number, loss, status="completed", **values):
    metrics = {"loss": loss, "epoch": 3.0}
    folder = f"logs/{arm}/{number:04d}"
    return Record(arm, number, values, status, metrics, 3, 1.5, folder)


RECORDS = [
    record("BBI", 0, 0.5, lr=0.1, bounce="cube", nesterov=None),
    record("BBI", 1, math.nan, "diverged", lr=10.0, bounce="isotropic", nesterov=None),
    record("SGD", 0, 0.25, lr=0.01, nesterov=True, betas=[0.9, 0.99]),
    Record("SGD", 1, {"lr": 0.02, "nesterov": False, "betas": [0.5, 0.9]}, "failed"),
]
RECORDS[3].error = "OSError: no 'space', left"


def write(folder, records=RECORDS, mode="min", published=None):
    configured = {
        arm: lambda values, arm=arm: {"arm": arm, "values": dict(values)}
        for arm in dict.fromkeys(record.arm for record in records)
    }
    return results.write(folder, records, configured, "loss", mode, published or {})


def test_a_row_holds_all_of_a_trial(tmp_path):
    write(tmp_path)
    table = pd.read_csv(tmp_path / "results.csv")
    assert list(table["optimizer"]) == ["BBI", "BBI", "SGD", "SGD"]
    assert list(table["trial"]) == [0, 1, 0, 1]
    status = ["completed", "diverged", "completed", "failed"]
    assert list(table["status"]) == status
    assert list(table["config/lr"]) == [0.1, 10.0, 0.01, 0.02]
    assert table["loss"].iloc[[0, 2]].tolist() == [0.5, 0.25]
    assert table["loss"].iloc[[1, 3]].isna().all()
    first = table.iloc[0]
    assert (first["reports"], first["seconds"], first["epoch"]) == (3, 1.5, 3.0)
    assert first["folder"] == "logs/BBI/0000"
    assert table["error"].iloc[3] == "OSError: no 'space', left"


def test_both_files_say_the_same(tmp_path):
    write(tmp_path)
    csv = pd.read_csv(tmp_path / "results.csv")
    parquet = pd.read_parquet(tmp_path / "results.parquet")
    assert list(csv.columns) == list(parquet.columns)
    for name in ("optimizer", "trial", "status", "config/lr", "loss", "seconds"):
        pd.testing.assert_series_equal(csv[name], parquet[name], check_dtype=False)
    lists = [json.loads(cell) for cell in parquet["config/betas"].iloc[2:]]
    assert lists == [[0.9, 0.99], [0.5, 0.9]]


@pytest.mark.parametrize(
    "values", [[1, 2.5], [True, 0.5], ["a", 1], [None, 1.5], [[1], None]], ids=str
)
def test_columns_of_several_types_are_written(values, tmp_path):
    records = [record("BBI", i, 1.0, x=value) for i, value in enumerate(values)]
    write(tmp_path, records)
    assert len(pd.read_parquet(tmp_path / "results.parquet")) == 2
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2


def test_the_best_of_every_arm_is_a_configuration(tmp_path):
    best = write(tmp_path)
    assert {arm: record.number for arm, record in best.items()} == {"BBI": 0, "SGD": 0}
    text = (tmp_path / "best_SGD.yaml").read_text()
    assert text.startswith("# loss = 0.25 in trial 0 of SGD.\n")
    assert yaml.safe_load(text) == {
        "arm": "SGD",
        "values": {"lr": 0.01, "nesterov": True, "betas": [0.9, 0.99]},
    }


def test_the_best_of_a_maximum_is_the_highest(tmp_path):
    records = [record("BBI", i, loss, lr=0.1) for i, loss in enumerate([1.0, 3.0, 2.0])]
    assert write(tmp_path, records, "max")["BBI"].number == 1


def test_published_settings_stand_beside_ours(tmp_path):
    published = record("BBI, published", 0, 0.75, lr=0.2)
    write(tmp_path, published={"BBI": published})
    told = json.loads((tmp_path / "best.json").read_text())
    values = {"lr": 0.1, "bounce": "cube", "nesterov": None}
    assert told["BBI"] == {
        "trial": 0,
        "loss": 0.5,
        "values": values,
        "published": {"values": {"lr": 0.2}, "loss": 0.75},
    }
    assert "published" not in told["SGD"]


def test_published_settings_that_diverged_leave_valid_json(tmp_path):
    published = record("BBI, published", 0, math.nan, "diverged", lr=0.2)
    write(tmp_path, published={"BBI": published})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    told = json.loads((tmp_path / "best.json").read_text(), parse_constant=refuse)
    assert told["BBI"]["published"]["loss"] is None


def test_an_arm_without_a_value_has_no_best(tmp_path):
    records = [record("BBI", 0, math.nan, "diverged", lr=0.1), *RECORDS[2:]]
    assert set(write(tmp_path, records)) == {"SGD"}
    assert not (tmp_path / "best_BBI.yaml").exists()
    assert set(json.loads((tmp_path / "best.json").read_text())) == {"SGD"}
