"""The command line as a function: model, data and trainer without a command."""

import signal
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from lightning_ecd.cli import CommandLine
from lightning_ecd.errors import UserError
from tests.cli.conftest import EXPERIMENT, SHORT

ARGS = ("--config", EXPERIMENT, *SHORT)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
    return tmp_path


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def weights(line):
    return [p.detach().clone() for p in line.model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def fitted(args, folder):
    line = CommandLine(args, run=False, folder=folder)
    line.trainer.fit(line.model, datamodule=line.datamodule)
    return line


def test_building_runs_and_writes_nothing(place):
    line = CommandLine(ARGS, run=False, folder=place / "run")
    assert type(line.model).__name__ == "Classifier"
    assert type(line.datamodule).__name__ == "Digits"
    assert (line.trainer.max_epochs, line.trainer.global_step) == (1, 0)
    assert files(place) == set()


def test_its_settings_build_the_same_again(place):
    first = CommandLine([*ARGS, "--model.optimizer.lr=0.125"], run=False)
    settings = first.dumped()
    assert settings["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.125
    given = deepcopy(settings)
    second = CommandLine(given, run=False)
    assert given == settings  # nothing of what is given changes
    assert second.dumped() == settings
    assert same(weights(first), weights(second))


def test_a_fit_of_what_it_built_equals_the_command(place, fit):
    settings = CommandLine(ARGS, run=False).dumped()
    assert fit("--name=command").code == 0
    command = Path("logs/command/version_0")
    expected = torch.load(command / "checkpoints/last.ckpt", weights_only=True)
    for name, args in (("arguments", ARGS), ("settings", settings)):
        line = fitted(args, place / "runs" / name)
        state = line.model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in expected["state_dict"].items())
        assert len(state) == len(expected["state_dict"])


def test_a_run_writes_into_its_folder(place):
    fitted(ARGS, place / "some" / "where")
    assert files(place / "some" / "where") >= {
        *("hparams.yaml", "metrics.csv", "checkpoints/last.ckpt", "phase_space.png")
    }
    assert [path.name for path in place.iterdir()] == ["some"]


def test_without_a_folder_it_gets_one_below_logs(place):
    fitted([*ARGS, "--checkpoint.last=false"], None)
    assert Path("logs/bbi_digits/version_0/metrics.csv").is_file()


def test_of_many_processes_the_first_alone_takes_a_folder(place, monkeypatch):
    rank = "pytorch_lightning.utilities.rank_zero_only.rank"
    monkeypatch.setattr(rank, 1)
    CommandLine(ARGS, run=False)
    assert not (place / "logs").exists()
    monkeypatch.setattr(rank, 0)
    first, second = (CommandLine(ARGS, run=False).run_folder for _ in range(2))
    assert (first.name, second.name) == ("version_0", "version_1")
    assert first.is_dir() and second.is_dir()


def test_nothing_of_one_leaks_into_the_next():
    """The parser is made once for all of them."""
    plain = CommandLine(ARGS, run=False).dumped()
    changed = CommandLine(
        [*ARGS, "--model.optimizer=SGD", "--data.batch_size=25"], run=False
    ).dumped()
    optimizer = changed["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert "extra_energy" not in optimizer["init_args"]
    assert changed["data"]["init_args"]["batch_size"] == 25
    assert CommandLine(ARGS, run=False).dumped() == plain
    assert CommandLine(changed, run=False).dumped() == changed


def test_a_seed_given_twice_builds_the_same_weights():
    one, two, other = (
        weights(CommandLine([*ARGS, f"--seed_everything={seed}"], run=False))
        for seed in (3, 3, 4)
    )
    assert same(one, two) and not same(one, other)


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("trainer", "max_epoch", 1, ["max_epoch"]),
        ("trainer", "max_epochs", "x", ["max_epochs", "x"]),
        ("trainer", "max_epochs", -7, ["max_epochs", "-7"]),
        (None, "trainers", {"max_epochs": 1}, ["trainers"]),
    ],
)
def test_bad_settings_are_one_line(part, key, value, words, capsys):
    settings = CommandLine(ARGS, run=False).dumped()
    (settings[part] if part else settings)[key] = value
    capsys.readouterr()
    with pytest.raises(UserError) as caught:
        CommandLine(settings, run=False)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert "error" not in capsys.readouterr().err


# -- what a run can do without -------------------------------------------------------


def test_a_run_without_its_last_checkpoint(fit, place):
    settings = ("--checkpoint.last", "false", "--checkpoint.every_n_steps", "2")
    assert fit(*settings).code == 0
    assert not (place / "logs/bbi_digits/version_0/checkpoints").exists()
    assert fit(*settings, "--checkpoint.monitor=val/accuracy").code == 0
    folder = place / "logs/bbi_digits/version_1/checkpoints"
    assert files(folder) == {"best.ckpt"}


def test_an_interrupted_run_without_checkpoints_offers_none(fit, place, monkeypatch):
    from modules import Classifier

    loss, calls = Classifier.loss, []

    def interrupting(self, batch):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    monkeypatch.setattr(Classifier, "loss", interrupting)
    result = fit("--checkpoint.last=false")
    assert result.code == 130
    assert "interrupted after step 2" in result.out
    assert "last.ckpt" not in result.out


def test_a_run_without_its_figure_logs_the_diagnostics_all_the_same(fit, place):
    assert fit("--diagnostics.figure", "false").code == 0
    folder = place / "logs/bbi_digits/version_0"
    assert not list(folder.glob("*.png"))
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    assert "optimizer/energy" in header and "optimizer/V" in header
