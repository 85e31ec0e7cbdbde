"""Bad input is one line on standard error that names the key; exit code 2."""

import pytest

from lightning_ecd.__main__ import main

DIGITS = "configs/experiment/bbi_digits.yaml"


@pytest.fixture
def error_line(request, tmp_path, monkeypatch, capsys):
    """Return the one line that a failing command prints."""
    config = request.config.rootpath / DIGITS
    monkeypatch.chdir(tmp_path)

    def run(*args, code=2):
        with pytest.raises(SystemExit) as exit_:
            main([arg.replace("DIGITS", str(config)) for arg in args])
        assert exit_.value.code == code
        lines = capsys.readouterr().err.strip().splitlines()
        ours = [line for line in lines if line.startswith("lightning-ecd: error: ")]
        assert len(ours) == 1 and lines[-1] == ours[0]
        assert "Traceback" not in "".join(lines)
        return ours[0].removeprefix("lightning-ecd: error: ")

    return run


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model.optimizer.lr", "abc"], ["--model.optimizer.lr", "float", "abc"]),
        (["--model.optimizer.lr", "-1"], ["lr", "(0, inf)", "-1"]),
        (["--model.optimizer.fixed_bounces", "1.5"], ["fixed_bounces", "int"]),
        (["--model.optimizer.lrx", "1"], ["--model.optimizer.lrx"]),
        (["--model.optimizer", "Nope"], ["--model.optimizer", "Nope", "BBI"]),
        (["--trainer.max_epoch", "2"], ["--trainer.max_epochs"]),
        (["--data.batch_size", "0"], ["batch_size", "at least 1"]),
        (["--data.batch_size", "x"], ["--data.batch_size", "int"]),
        (["--model.network.outputs", "5"], ["5 outputs", "10 classes"]),
        (["--model.network.size", "28"], ["(1, 8, 8)"]),
        (["--checkpoint.every_n_steps", "-1"], ["every_n_steps", "-1"]),
        (["--ckpt_path", "last"], ["last.ckpt", "bbi_digits"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--model.groups", '{"x*": {"lr": 1}}'], ["groups", "x*", "network.0.weight"]),
        (["--data", "datamodules.MNIST", "--data.data_dir", "gone"], ["gone"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_names_the_key(error_line, flags, named):
    line = error_line("fit", "--config", "DIGITS", *flags)
    for word in named:
        assert word in line


def test_a_bad_argument_of_a_callback_is_the_whole_line(error_line):
    callback = "--trainer.callbacks=lightning_ecd.callbacks.Forecast"
    flags = [callback, "--trainer.callbacks.points=0"]
    line = error_line("fit", "--config", "DIGITS", *flags)
    assert line == "points must be at least 1, got 0"


def test_missing_config_is_named(error_line):
    assert "nope.yaml" in error_line("fit", "--config", "nope.yaml")


def test_unknown_command_lists_the_known(error_line):
    line = error_line("train")
    assert "train" in line and "fit" in line


def test_divergence_says_step_loss_and_optimizer(error_line):
    flags = ["--model.optimizer", "SGD", "--model.optimizer.lr", "1e10"]
    flags += ["--trainer.log_every_n_steps", "5", "--trainer.max_epochs", "1"]
    flags += ["--trainer.enable_progress_bar", "false"]
    line = error_line("fit", "--config", "DIGITS", *flags, code=1)
    assert "step 4" in line and "nan" in line and "SGD" in line


def test_early_stopping_before_any_validation_is_named(error_line):
    early = "--trainer.callbacks=pytorch_lightning.callbacks.EarlyStopping"
    flags = [early, "--trainer.callbacks.monitor=val/loss", "--trainer.max_steps=1"]
    line = error_line("fit", "--config=DIGITS", *flags)
    assert "trainer.callbacks" in line and "val/loss" in line
