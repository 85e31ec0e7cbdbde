"""Every network of Entropy-SGD takes a step on the data it is for."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, SHORT

CONFIGS = ROOT / "configs"
IMAGES = {"MNIST": "mnist_entropy", "CIFAR10": "cifar10"}
FOLDERS = {"MNIST": "MNIST", "CIFAR10": "cifar-10-batches-py"}
CLASSIFIERS = {
    "mnistfc": "MNIST",
    "mnistconv": "MNIST",
    "mnistconv_lua": "MNIST",
    "small_lenet": "MNIST",
    "small_mnistfc": "MNIST",
    "allcnn": "CIFAR10",
}
TEXTS = {"char_lstm": "characters", "small_char_lstm": "characters"} | {
    "small_word_lstm": "words"
}


def step(cli, task, network, schedule, *data):
    """Take a step of Adam with a scheduler; return the losses that are printed."""
    flags = [
        "--model",
        task,
        "--model.network",
        CONFIGS / "network" / f"{network}.yaml",
    ]
    flags += ["--model.optimizer=torch.optim.Adam"]
    flags += ["--model.scheduler", CONFIGS / "scheduler" / f"{schedule}.yaml"]
    flags += ["--model.scheduler_interval=step", "--trainer.max_steps=1"]
    result = cli("fit", "--trainer.devices=1", *data, *flags, *SHORT)
    assert (result.code, result.err) == (0, "")
    assert "test/loss" in result.out


@pytest.mark.parametrize("network", CLASSIFIERS)
def test_classifiers_take_a_step(network, cli):
    data = CLASSIFIERS[network]
    folder = Path(os.environ.get("LIGHTNING_ECD_DATA", "data"), FOLDERS[data])
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing: set LIGHTNING_ECD_DATA")
    small = ["--data.batch_size=4", "--data.eval_batch_size=4"]
    file = CONFIGS / "data" / f"{IMAGES[data]}.yaml"
    step(cli, "modules.Classifier", network, "mnist_entropy", "--data", file, *small)


@pytest.mark.parametrize("network", TEXTS)
def test_language_models_take_a_step(network, cli, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\nand sang\n" * 40)
    data = ["--data=datamodules.Text", "--data.path=text.txt", "--data.batch_size=3"]
    data += [f"--data.unit={TEXTS[network]}", "--data.window=5"]
    step(cli, "modules.LanguageModel", network, "char_lstm_entropy", *data)
