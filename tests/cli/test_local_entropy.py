"""The local-entropy family and sharpness on the command line."""

import csv
from pathlib import Path

import pytest

from lightning_ecd.optimizers import REGISTRY
from tests.cli.conftest import ROOT

FAMILIES = ("local entropy", "sharpness")
NAMES = [n for n, e in REGISTRY.items() if e.traits.family in FAMILIES]
SMALL = ("--data.batch_size=4", "--trainer.limit_train_batches=2")


def rows():
    """Return the rows of the run's metrics."""
    (file,) = Path("logs").rglob("metrics.csv")
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def evaluations():
    """Return how many evaluations the run has logged."""
    return max(float(row["train/evaluations"] or 0) for row in rows())


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_the_family_trains(name, fit):
    file = ROOT / "configs" / "optimizer" / f"{name.lower()}.yaml"
    result = fit(*SMALL, "--model.optimizer", file)
    assert (result.code, result.err) == (0, "")
    assert "test/accuracy" in result.out


@pytest.mark.parametrize(
    ("flags", "each"),
    [
        ((), 5),
        (("preset=paper",), 5),
        (("preset=lua",), 6),
        (("preset=lua", "skip_first_eval=true"), 5),
        (("preset=python", "lr=0.1"), 6),
        (("skip_first_eval=false",), 6),
        (("inner_steps=0",), 1),
    ],
    ids=["default", "paper", "lua", "lua_skips", "python", "wasteful", "sgd"],
)
def test_the_loader_cuts_batches_as_the_preset_asks(flags, each, fit):
    own = [f"--model.optimizer.{flag}" for flag in ("inner_steps=5", *flags)]
    result = fit(*SMALL, "--model.optimizer=EntropySGD", *own)
    assert (result.code, result.err) == (0, "")
    assert evaluations() == 2 * each


def test_minibatches_that_contradict_the_preset_are_refused(fit):
    own = ["--model.optimizer.preset=lua", "--model.optimizer.inner_steps=5"]
    flags = ["--model.minibatches=5", "--model.optimizer=EntropySGD", *own]
    result = fit(*SMALL, *flags)
    assert result.code == 2
    assert "model.minibatches=5 does not suit EntropySGD: use 6, or 1" in result.error


@pytest.mark.parametrize("name", ["EntropySGD", "Parle", "SAM"])
def test_accumulation_within_a_step_is_refused(name, fit):
    flags = [f"--model.optimizer={name}", "--trainer.accumulate_grad_batches=2"]
    result = fit(*SMALL, *flags)
    assert result.code == 2
    assert f"accumulate_grad_batches=2 does not work with {name}" in result.error


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("preset=c", "preset"),
        ("gamma_max=0", "gamma_max must lie in (0, inf]"),
        ("inner_steps=two", "inner_steps"),
        ("inner_step=2", "inner_step"),
    ],
)
def test_bad_arguments_are_one_line(flag, sentence, fit):
    result = fit("--model.optimizer=EntropySGD", f"--model.optimizer.{flag}")
    assert result.code == 2
    assert sentence in result.error


def test_diagnostics_are_logged_every_k_steps(fit):
    own = [f"--model.optimizer.{k}" for k in ("inner_steps=2", "diagnostics_every=2")]
    result = fit(*SMALL, "--model.optimizer=EntropySGD", *own)
    assert result.code == 0
    names = ("gradient", "displacement", "cosine", "noise", "excursion", "gamma")
    wanted = [f"optimizer/{name}" for name in names]
    found = [row for row in rows() if row.get("optimizer/gradient")]
    assert len(found) == 1  # two steps
    assert all(float(found[0][name]) != 0 for name in wanted)
    assert -1 <= float(found[0]["optimizer/cosine"]) <= 1
