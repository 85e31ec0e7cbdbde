"""`lightning-ecd theory`: studies from files and flags; errors in one line."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import ROOT

STUDIES = [
    file
    for file in sorted((ROOT / "configs" / "study").glob("*.yaml"))
    if "lightning_ecd.theory" in file.read_text()
]
MAP = ROOT / "configs" / "study" / "loss_map_powerlaw.yaml"
EXPERIMENT = ROOT / "configs" / "experiment" / "regimes_digits.yaml"
#: What makes a study of seconds short.
QUICK = {
    "loss_map_powerlaw": ["--study.alpha=[0,4,9]", "--study.beta=[-1,1,7]"],
    "negative_momentum_map": ["--study.nu=[1.1,3,5]", "--study.samples=50"],
    "linearized_map_powerlaw": [
        *("--study.alpha=[0,4,5]", "--study.beta=[-1,1,5]"),
        *("--study.steps=50", "--problem.samples=40"),
    ],
    "momentum_powerlaw": ["--study.laws=[[1.5,4]]", "--study.samples=200"],
    "budget_powerlaw": ["--problem.samples=100"],
    "curves_powerlaw": ["--study.steps=20", "--problem.samples=50"],
}
_FEW = ["--arguments=[--data.samples=120, --data.batch_size=10]"]
#: Data of experiments -> their folder.
_DATA = {"mnist": "MNIST", "bike": "uci", "sgemm": "uci"}
OF_EXPERIMENTS = {
    "loss_map_mnist": _FEW,
    "budget_mnist": [*_FEW, "--study.samples=20000"],
    "linearized_map_mnist": [*_FEW, "--study.steps=50"],
    **{f"modes_{data}": [*_FEW, "--study.steps=20"] for data in _DATA},
    **{
        f"spectrum_{data}": [
            *_FEW,
            "--study.eigenvalues=[5,50]",
            "--study.tails=[5,50]",
        ]
        for data in _DATA
    },
}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_runs_and_writes_its_findings(file, cli, monkeypatch):
    if file.stem in OF_EXPERIMENTS:
        folder = _DATA[file.stem.rsplit("_", 1)[1]]
        root = Path(os.environ.get("LIGHTNING_ECD_DATA", "data"), folder)
        if not root.is_dir():
            pytest.skip(f"{root} is missing: set LIGHTNING_ECD_DATA")
    quick = [*QUICK.get(file.stem, []), *OF_EXPERIMENTS.get(file.stem, [])]
    result = cli("theory", "--config", file, *quick)
    assert (result.code, result.err) == (0, "")
    folder = Path("logs") / file.stem / "version_0"
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers
    assert torch.load(folder / "arrays.pt", weights_only=True)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures and pictures == {path.stem for path in folder.glob("*.pdf")}
    assert list(folder.glob("events.out.tfevents.*"))
    assert json.loads((folder / "config.json").read_text())["study"]["class_path"]


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_states_published_and_own_numbers(file):
    head = [line for line in file.read_text().splitlines() if line[:1] == "#"]
    assert any(line.startswith("# Published") for line in head)
    assert any(line.startswith("# Ours") for line in head)


def test_a_study_of_an_experiment_is_of_its_network(cli):
    few = "--arguments=[--data.samples=100, --data.batch_size=10]"
    study = "lightning_ecd.theory.studies.SpectrumStudy"
    windows = ["--study.eigenvalues=[5,50]", "--study.tails=[5,50]"]
    result = cli("theory", "--study", study, *windows, "--experiment", EXPERIMENT, few)
    assert (result.code, result.err) == (0, "")
    numbers = json.loads(Path("logs/theory/version_0/numbers.json").read_text())
    assert numbers["samples"] == 100
    assert 0.5 < numbers["nu"] < 3


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--study.betas=[1]"], ["betas"]),
        (["--study.steps=many"], ["steps", "many"]),
        (["--study.batches=[-3]"], ["batches"]),
        (["--problem.nu=-1"], ["nu"]),
        (["--experiment=no.yaml"], ["exclude"]),
        (["--arguments=[--a=1]"], ["experiment"]),
        (["--study=Nothing"], ["Nothing"]),
    ],
)
def test_errors_are_one_line(flags, words, cli):
    result = cli("theory", "--config", MAP, *flags)
    assert result.code == 2
    assert all(word in result.error for word in words)
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    "experiment, words",
    [
        ("no.yaml", ["no.yaml"]),
        (ROOT / "configs/experiment/bbi_digits.yaml", ["modules.Regression"]),
    ],
)
def test_experiments_that_do_not_fit_are_one_line(experiment, words, cli):
    study = "lightning_ecd.theory.studies.SpectrumStudy"
    result = cli("theory", "--study", study, "--experiment", experiment)
    assert result.code == 2
    assert all(word in result.error for word in words)


def test_samples_that_do_not_fit_are_one_line(cli, monkeypatch):
    monkeypatch.delattr("lightning_ecd.predictions.kernel_of")
    study = "lightning_ecd.theory.studies.SpectrumStudy"
    flags = ["--study", study, "--experiment", EXPERIMENT, "--memory=0.001"]
    result = cli("theory", *flags)
    assert result.code == 2
    # five and a half matrices of N x N numbers of 8 bytes: (2^30 / 1000 / 44)^(1/2)
    assert "memory: " in result.error and "at most 156 samples fit" in result.error
    assert "memory" in cli("theory", *flags[:-1], "--memory=0").error
    assert not Path("logs").exists()


def test_a_missing_kernel_is_one_line(cli):
    problem = "lightning_ecd.theory.problems.KernelFile"
    study = "lightning_ecd.theory.studies.SpectrumStudy"
    flags = ["--problem", problem, "--problem.file", "none.pt", "--study", study]
    result = cli("theory", *flags)
    assert result.code == 2 and "none.pt" in result.error
