"""The shipped learning-rate schedules against their published tables."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

FOLDER = Path(__file__).parent.parent / "configs" / "scheduler"
MNIST, CIFAR, CHARACTERS, WORDS = 468, 390, 399, 1327  # steps in an epoch

#: Name -> steps in an epoch, epochs, factor of the learning rate in epochs from 1 on.
TABLES = {
    "mnist_entropy": (MNIST, 5, lambda e: 1 if e <= 2 else 0.1),
    "mnist_sgd": (1, 100, lambda e: 1 if e <= 30 else 0.2 if e <= 60 else 0.04),
    "mnist_adam": (1, 100, lambda e: 0.2 ** ((e - 1) // 30)),
    "cifar10_entropy": (CIFAR, 10, lambda e: 0.2 ** ((e - 1) // 4)),
    "cifar10_entropy_lua": (
        *(CIFAR, 10),
        lambda e: 1 if e <= 3 else 0.2 if e <= 6 else 0.04,
    ),
    "cifar10_sgd": (1, 200, lambda e: 0.2 ** ((e - 1) // 60)),
    "char_lstm_entropy": (CHARACTERS, 5, lambda e: 0.5 ** (e - 1)),
    "char_lstm_adam": (1, 50, lambda e: 0.5 ** ((e - 1) // 5)),
    "word_lstm_entropy": (WORDS, 5, lambda e: 0.1 ** max(0, e - 3)),
    "word_lstm_sgd": (1, 55, lambda e: 1.15 ** -max(0, e - 14)),
}


def test_every_schedule_has_a_table():
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(TABLES)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize("name", TABLES)
def test_every_epoch_has_the_published_learning_rate(name):
    steps, epochs, factor = TABLES[name]
    text = (FOLDER / f"{name}.yaml").read_text()
    assert ("scheduler_interval=step" in text) == (steps > 1)
    settings = yaml.safe_load(text)
    module, kind = settings["class_path"].rsplit(".", 1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
    build = getattr(import_module(module), kind)
    scheduler = build(optimizer, **settings["init_args"])
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            expected = 3.0 * factor(epoch)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
            scheduler.step()
