"""Rows of a run that is resumed, each once."""

import csv

import pytest

from lightning_ecd.callbacks import MetricsFile

ROWS = [
    ({"train/loss": 3.0, "epoch": 0}, 1),
    ({"val/loss": 2.5, "epoch": 0}, 1),
    ({"train/loss": 2.0, "epoch": 1}, 3),
    ({"val/loss": 1.5, "epoch": 1}, 3),
]


def write(folder, rows):
    logger = MetricsFile(folder, "", "")
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
        logger.save()
    logger.finalize("success")
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("written", "again"), [(n, k) for n in range(1, 5) for k in range(n + 1)]
)
def test_rows_are_there_once_wherever_it_is_cut(tmp_path, written, again):
    """It goes on from a checkpoint after some rows, of which more may be written."""
    whole = write(tmp_path / "whole", ROWS)
    write(tmp_path / "cut", ROWS[:written])
    assert write(tmp_path / "cut", ROWS[again:]) == whole


def test_a_row_that_a_crash_has_cut_is_left_out(tmp_path):
    write(tmp_path, ROWS[:3])
    file = tmp_path / "metrics.csv"
    file.write_bytes(file.read_bytes()[:-5])
    assert [row["step"] for row in write(tmp_path, ROWS[2:])] == ["1", "1", "3", "3"]


def test_a_new_column_of_the_second_part_joins_the_others(tmp_path):
    write(tmp_path, ROWS[:2])
    rows = write(tmp_path, [({"train/loss": 2.0, "lr": 0.1}, 3)])
    assert [row["lr"] for row in rows] == ["", "", "0.1"]
