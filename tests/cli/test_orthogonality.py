"""`lightning-ecd orthogonality`: cosines of random vectors."""

import csv
from pathlib import Path

import pytest
import torch

from lightning_ecd.orthogonality import expected, measured


def test_the_law_of_large_dimensions_is_that_of_many_draws():
    torch.manual_seed(0)
    a, b = torch.randn(2, 20_000, 200, dtype=torch.float64)
    cosines = torch.cosine_similarity(a, b).abs()
    mean, std = expected(200)
    assert cosines.mean().item() == pytest.approx(mean, rel=0.02)
    assert cosines.std().item() == pytest.approx(std, rel=0.02)


def test_measured_cosines_follow_the_law():
    mean, std = measured(1000, 400, seed=3)
    assert mean == pytest.approx(expected(1000)[0], rel=0.15)
    assert std == pytest.approx(expected(1000)[1], rel=0.15)
    assert measured(1000, 50, seed=3) == measured(1000, 50, seed=3)
    assert measured(1000, 50, seed=3) != measured(1000, 50, seed=4)


def test_draws_a_picture_and_writes_the_numbers(cli):
    result = cli("orthogonality", "--powers=3", "--pairs=20", "--output=a/cos.png")
    assert (result.code, result.err) == (0, "")
    assert Path("a/cos.png").stat().st_size > 5000
    rows = list(csv.DictReader(Path("a/cos.csv").read_text().splitlines()))
    assert [row["dimension"] for row in rows] == ["10", "100", "1000"]
    for row in rows:
        found = measured(int(row["dimension"]), 20)
        assert (float(row["mean"]), float(row["std"])) == pytest.approx(found)


def test_bad_arguments_are_one_line(cli):
    assert "powers must lie in [1, 9]" in cli("orthogonality", "--powers=0").error
    assert "pairs must be at least 2" in cli("orthogonality", "--pairs=1").error
