"""Resuming by the command line: what it refuses, and that it survives kill -9."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from tests.cli.conftest import EXPERIMENT, SHORT


def run_folder(tmp_path, version=0):
    return tmp_path / "logs" / "bbi_digits" / f"version_{version}"


def weights_in(folder):
    file = folder / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


# -- seeds -------------------------------------------------------------------------


def test_a_seed_repeats_the_run_to_the_bit_and_another_does_not(fit, tmp_path):
    for seed in (5, 5, 6):
        assert fit(f"--seed_everything={seed}", "--test_after_fit=false").code == 0
    one, two, other = (weights_in(run_folder(tmp_path, k)) for k in range(3))
    assert same(one, two)
    assert not same(one, other)


# -- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "new", "old"),
    [
        ("model.optimizer.lr", "0.25", "0.2"),
        ("model.optimizer.seed", "4", "0"),
        ("model.network.dropout", "0.5", "0.0"),
        ("model.minibatches", "1", "None"),
        ("data.batch_size", "25", "50"),
        ("data.seed", "1", "0"),
        ("model.optimizer", "torch.optim.SGD", "BBI"),
        ("data", "datamodules.MNIST", "Digits"),
    ],
)
def test_a_changed_setting_is_named_with_old_and_new(flag, new, old, fit):
    assert fit("--test_after_fit=false").code == 0
    result = fit(f"--{flag}={new}", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert result.code == 2
    assert flag in result.error
    assert new.split(".")[-1] in result.error and old in result.error


def test_what_no_training_batch_depends_on_may_change(fit, tmp_path):
    assert fit("--test_after_fit=false").code == 0
    result = fit(
        "--data.eval_batch_size=50", "--ckpt_path=last", "--trainer.max_epochs=2"
    )
    assert (result.code, result.err) == (0, "")
    file = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert torch.load(file, weights_only=True)["global_step"] == 8
    assert not run_folder(tmp_path, 1).exists()


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_missing_file_of_the_run_is_refused(name, fit):
    result = fit(f"--ckpt_path={name}")
    assert result.code == 2
    assert f"{name}.ckpt" in result.error and "bbi_digits" in result.error


def test_last_is_that_of_the_newest_run(fit, tmp_path):
    for _ in range(2):
        assert fit("--test_after_fit=false").code == 0
    before = weights_in(run_folder(tmp_path, 0))
    assert fit("--ckpt_path=last", "--trainer.max_epochs=2").code == 0
    assert same(before, weights_in(run_folder(tmp_path, 0)))
    assert not same(before, weights_in(run_folder(tmp_path, 1)))
    assert not run_folder(tmp_path, 2).exists()


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_bad_checkpoint_is_one_line(command, cli, fit, tmp_path):
    target = tmp_path / "executed"
    bad = {
        "truncated.ckpt": lambda path: (
            torch.save({"state_dict": {}}, path),
            os.truncate(path, 100),
        ),
        "hostile.ckpt": lambda path: torch.save(
            {"state_dict": {}, "x": Hostile(str(target))}, path
        ),
        "weights.ckpt": lambda path: torch.save(nn.Linear(1, 1).state_dict(), path),
        "missing.ckpt": lambda path: None,
    }
    for name, make in bad.items():
        make(tmp_path / name)
        result = cli(
            command, "--config", EXPERIMENT, *flags_of(command), "--ckpt_path", name
        )
        assert result.code == 2
        assert name in result.error
    assert not target.exists()


def flags_of(command):
    """Flags of a short run that this command knows."""
    return [flag for flag in SHORT if command == "fit" or "enable_progress" in flag]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_of_another_model_is_one_line(command, cli, fit, tmp_path):
    assert fit("--test_after_fit=false").code == 0
    file = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    network = {"class_path": "modules.LeNet", "init_args": {"size": 8, "outputs": 33}}
    flags = [*flags_of(command), f"--model.network={json.dumps(network)}"]
    result = cli(command, "--config", EXPERIMENT, *flags, "--ckpt_path", file)
    assert result.code == 2
    assert "another model" in result.error


# -- interrupted -------------------------------------------------------------------

LONG = (
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model.network.dropout=0.3",
    "--checkpoint.every_n_steps=3",
    "--test_after_fit=false",
)


def test_kill_9_in_the_middle_of_an_epoch(cli, tmp_path):
    command = ["fit", "--config", EXPERIMENT, *LONG]
    assert cli(*command, "--name=whole").code == 0
    folder = tmp_path / "logs" / "killed" / "version_0"
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "lightning_ecd", *command, "--name=killed"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
        file, end = folder / "checkpoints" / "last.ckpt", time.monotonic() + 90
        while not file.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert file.exists(), (tmp_path / "output").read_text()
    step = torch.load(file, weights_only=True)["global_step"]
    assert 0 < step < 50  # of 25 a epoch
    assert step % 25 != 0
    result = cli(*command, "--name=killed", "--ckpt_path=last")
    assert (result.code, result.err) == (0, "")
    assert same(
        weights_in(tmp_path / "logs" / "whole" / "version_0"), weights_in(folder)
    )


def test_ctrl_c_says_how_to_go_on(cli, tmp_path, monkeypatch):
    from modules import Classifier

    loss, calls = Classifier.loss, []

    def interrupting(self, batch):
        calls.append(1)
        if len(calls) == 9:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    command = ["fit", "--config", EXPERIMENT, *LONG]
    assert cli(*command, "--name=whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "loss", interrupting)
        result = cli(*command, "--name=cut")
    assert result.code == 130
    assert "interrupted after step 9" in result.out
    hint = result.out.splitlines()[-1].split()
    assert hint[:2] == ["lightning-ecd", "fit"]
    assert cli(*hint[1:]).code == 0
    logs = tmp_path / "logs"
    assert same(
        weights_in(logs / "whole" / "version_0"), weights_in(logs / "cut" / "version_0")
    )


def test_an_error_is_one_line_of_the_whole_process(tmp_path):
    command = [sys.executable, "-m", "lightning_ecd", "fit", "--config", EXPERIMENT]
    done = subprocess.run(
        [*command, "--model.optimizer.lr=-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("lightning-ecd: error: lr must lie in (0, inf), got -1")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_ctrl_c_without_a_training_is_told(command, fit, cli, tmp_path, monkeypatch):
    from modules import Classifier

    assert fit("--trainer.max_steps=1").code == 0
    run = run_folder(tmp_path)
    kept = signal.getsignal(signal.SIGINT)  # Lightning ignores it from then on

    def interrupting(self, *args):
        raise KeyboardInterrupt

    step = {"validate": "validation"}.get(command, command)
    monkeypatch.setattr(Classifier, f"{step}_step", interrupting)
    result = cli(
        command,
        *("--config", run / "config.yaml"),
        *("--ckpt_path", run / "checkpoints" / "last.ckpt"),
    )
    signal.signal(signal.SIGINT, kept)
    assert result.code == 130
    assert "lightning-ecd: interrupted" in result.err
