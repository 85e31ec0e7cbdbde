"""`lightning-ecd dimensions`: a metric against the number of directions."""

import csv
import math
from pathlib import Path

import pytest

from lightning_ecd.errors import Diverged, UserError
from tests.cli.conftest import EXPERIMENT, cli  # noqa: F401
from tune import dimensions
from tune.dimensions import Dimensions

FILE = Path(EXPERIMENT)


def study(monkeypatch, fit, **settings):
    """A study whose fits are a function of the flags and the seed."""
    monkeypatch.setattr(dimensions, "run_experiment", fit)
    settings = {"dimensions": [100, 10, 30], "baseline": ["--sgd"], **settings}
    return Dimensions(str(FILE), **settings)


def flag(words, name):
    return next(int(word.split("=")[1]) for word in words if f".{name}=" in word)


def saturating(words, seed):
    if "--sgd" in words:
        return {"val/accuracy": 0.9}
    d = flag(words, "dimensions")
    assert flag(words, "seed") == seed
    return {
        "val/accuracy": 1 - 1 / d - 0.01 * seed,
        "optimizer/cosine": (d / 1000) ** 0.5,
        "optimizer/parameters": 1000.0,
    }


def test_the_smallest_number_that_reaches_the_share(monkeypatch):
    found = study(monkeypatch, saturating, seeds=[1, 3])
    found.run()
    assert found.values[10] == pytest.approx([0.89, 0.87])
    assert found.mean(30) == pytest.approx(1 - 1 / 30 - 0.02)
    assert found.enough() == 10  # 0.88 of 0.81
    found.share = 1.0
    assert found.enough() == 30
    found.values[0] = [0.99]
    assert found.enough() is None
    assert found.parameters == 1000
    assert list(found.cosines) == [0, 10, 30, 100]


def test_a_run_that_diverges_is_no_value(monkeypatch, tmp_path):
    def fit(words, seed):
        if "--sgd" not in words and flag(words, "dimensions") == 30 and seed == 1:
            raise Diverged("loss is nan")
        return saturating(words, seed)

    found = study(monkeypatch, fit, seeds=[1, 3])
    found.run()
    assert math.isnan(found.mean(30))
    assert found.enough() == 10
    found.write(tmp_path)
    rows = list(csv.reader((tmp_path / "dimensions.csv").read_text().splitlines()))
    assert [row[:2] for row in rows[1:]] == [
        [d, seed] for d in ("all", "10", "30", "100") for seed in ("1", "3")
    ]
    assert rows[5][2:] == ["nan", "nan"]
    assert [float(cell) for cell in rows[6][2:]] == pytest.approx(
        [1 - 1 / 30 - 0.03, 0.03**0.5]
    )


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (SystemExit(130), 130, "interrupted after 2 runs"),
        (KeyboardInterrupt(), 130, "interrupted after 2 runs"),
        (UserError("dimensions must be at most 50"), 2, "at most 50"),
        (SystemExit(2), 2, "picture: logs/dimensions_bbi_digits"),
    ],
)
def test_what_ends_it_loses_nothing(cli, monkeypatch, end, code, words):  # noqa: F811
    def fit(flags, seed):
        if flag(flags, "dimensions") == 100:
            raise end
        return saturating(flags, seed)

    monkeypatch.setattr(dimensions, "run_experiment", fit)
    result = cli("dimensions", f"--experiment={FILE}", "--dimensions=[10,30,100]")
    assert result.code == code
    assert words in result.out + result.err
    file = Path("logs/dimensions_bbi_digits/version_0/dimensions.csv")
    assert len(file.read_text().splitlines()) == 3


def test_a_baseline_that_diverges_is_said(cli, monkeypatch):  # noqa: F811
    def fit(flags, seed):
        if "--sgd" in flags:
            raise Diverged("loss is nan")
        return saturating(flags, seed)

    monkeypatch.setattr(dimensions, "run_experiment", fit)
    flags = ["--dimensions=[10]", "--baseline=[--sgd]"]
    assert (
        "the baseline diverged" in cli("dimensions", f"--experiment={FILE}", *flags).out
    )


def test_an_unknown_metric_is_named(monkeypatch):
    found = study(monkeypatch, saturating, metric="val/f1")
    with pytest.raises(UserError, match="no 'val/f1' after a fit; there are val/acc"):
        found.run()


def test_fits_draws_and_writes(cli):  # noqa: F811
    quick = "--trainer.max_epochs=2,--trainer.log_every_n_steps=5"
    few = "--model.optimizer=RBD,--model.optimizer.lr=1,--model.optimizer.basis=in_law"
    often = "--model.optimizer.diagnostics_every=5"
    flags = ",".join([quick, few, often])
    sgd = "--model.optimizer=SGD,--model.optimizer.lr=0.1"
    result = cli(
        *("dimensions", "--experiment", FILE, "--dimensions=[5,500]"),
        *(f"--arguments=[{flags}]", f"--baseline=[{sgd}]"),
    )
    assert (result.code, result.err) == (0, "")
    folder = Path("logs/dimensions_bbi_digits/version_0")
    assert (folder / "dimensions.png").stat().st_size > 5000
    rows = list(csv.DictReader((folder / "dimensions.csv").read_text().splitlines()))
    assert [row["dimensions"] for row in rows] == ["all", "5", "500"]
    assert 0 < float(rows[1]["cosine"]) < float(rows[2]["cosine"]) < 1
    assert "the smallest d that reaches 90% of the baseline" in result.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dimensions=[0]"], "dimensions must be at least 1"),
        (["--dimensions=[5]", "--share=0"], "share must lie in (0, 1]"),
        (["--dimensions=[5]", "--experiment=no.yaml"], "there is no file no.yaml"),
        ([], "dimensions"),
    ],
)
def test_bad_arguments_are_one_line(cli, flags, message):  # noqa: F811
    assert message in cli("dimensions", f"--experiment={FILE}", *flags).error
