"""The command line, called in this process: importing it anew takes seconds."""

import warnings
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "configs" / "experiment" / "bbi_digits.yaml")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self):
        """What stands on standard error: exactly one line."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("lightning-ecd: error: ")
        return lines[0]


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """A function that runs a command in an empty folder."""
    from lightning_ecd.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after

    def run(*args):
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings():
            try:
                main([str(arg) for arg in args])
            except SystemExit as end:
                code = end.code
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


#: A short run: four batches in an epoch, one of validation, no pictures on screen.
SHORT = (
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.log_every_n_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)


@pytest.fixture
def fit(cli):
    """A function that fits the digits experiment for a moment."""

    def run(*args):
        return cli("fit", "--config", EXPERIMENT, *SHORT, *args)

    return run
