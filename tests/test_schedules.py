"""The shipped learning-rate schedules against their published tables."""

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_ecd.schedules import WarmUp

FOLDER = Path(__file__).parent.parent / "configs" / "scheduler"
# steps in an epoch
MNIST, CIFAR, CHARACTERS, WORDS, BASES = 468, 390, 399, 1327, 1563

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
    "mnist_bases_piecewise": (
        *(BASES, 100),
        lambda e: 1 if e <= 51 else 0.1 if e <= 76 else 0.01,
    ),
    "mnist_bases_cosine": (
        *(BASES, 100),
        lambda e: 0.505 + 0.495 * math.cos(math.pi * (e - 1) / 100),
    ),
    "mnist_bases_exponential": (BASES, 100, lambda e: 2 ** (-(e - 1) / 50)),
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


def warmed(**settings):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3.0)
    return optimizer, WarmUp(optimizer, steps_per_epoch=10, epochs=4, **settings)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
@pytest.mark.parametrize(
    ("rise", "factors"),
    [
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("exp", [2**0.25 - 1, 2**0.5 - 1, 2**0.75 - 1, 1]),
    ],
)
def test_a_warm_up_rises_to_the_learning_rate(rise, factors):
    optimizer, scheduler = warmed(warmup=4, rise=rise, course="piecewise")
    for t in range(40):
        later = 1 if t < 30 else 0.1
        factor = factors[t] if t < 4 else later
        assert optimizer.param_groups[0]["lr"] == pytest.approx(3 * factor)
        scheduler.step()


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*")
def test_a_warm_up_goes_on_where_it_was():
    optimizer, scheduler = warmed(warmup=7, course="cosine")
    for _ in range(25):
        scheduler.step()
    other, resumed = warmed(warmup=7, course="cosine")
    resumed.load_state_dict(scheduler.state_dict())
    for _ in range(5):
        scheduler.step()
        resumed.step()
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"warmup": -1}, "warmup"),
        ({"rise": "log"}, "rise"),
        ({"course": "linear"}, "course"),
    ],
)
def test_bad_arguments_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        warmed(**settings)
