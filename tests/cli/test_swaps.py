"""A class chosen over another one starts from its own defaults and its own flags."""

import pytest
import yaml

from tests.cli.conftest import EXPERIMENT, ROOT

CONFIGS = ROOT / "configs"
SGD_FILE = str(CONFIGS / "optimizer" / "sgd.yaml")
TORCH_LR = 1e-3  # the default of torch.optim.SGD; BBI's in the experiment is 0.2


@pytest.fixture
def printed(cli):
    """A function that returns what a command line amounts to."""

    def run(*args):
        result = cli("fit", *args, "--print_config")
        assert (result.code, result.err) == (0, "")
        return yaml.safe_load(result.out)

    return run


def optimizer_of(settings):
    part = settings["model"]["init_args"]["optimizer"]
    return part["class_path"].split(".")[-1], part["init_args"]


@pytest.mark.parametrize(
    ("flags", "lr", "momentum"),
    [
        (["--model.optimizer=SGD"], TORCH_LR, 0.0),
        (["--model.optimizer", "torch.optim.SGD"], TORCH_LR, 0.0),
        (["--model.optimizer", SGD_FILE], 0.01, 0.95),
        (["--model.optimizer", SGD_FILE, "--model.optimizer.lr=0.3"], 0.3, 0.95),
        (["--model.optimizer=SGD", "--model.optimizer.momentum=0.5"], TORCH_LR, 0.5),
        (["--model.optimizer.lr=9", "--model.optimizer=SGD"], TORCH_LR, 0.0),
        (
            ["--model.init_args.optimizer.class_path=SGD"]
            + ["--model.init_args.optimizer.init_args.lr=0.3"],
            0.3,
            0.0,
        ),
        (["--model.optimizer=Adam", "--model.optimizer=SGD"], TORCH_LR, 0.0),
    ],
    ids=lambda value: (
        " ".join(v[-20:] for v in value) if value.__class__ is list else None
    ),
)
def test_an_optimizer_by_flag(flags, lr, momentum, printed):
    name, values = optimizer_of(printed("--config", EXPERIMENT, *flags))
    assert (name, values["lr"], values["momentum"]) == ("SGD", lr, momentum)
    assert "f_min" not in values and "patience" not in values


@pytest.mark.parametrize("form", ["file", "class", "written out"])
def test_an_optimizer_by_a_second_config(form, printed, tmp_path):
    part = {
        "file": SGD_FILE,
        "class": "torch.optim.SGD",
        "written out": {
            "class_path": "torch.optim.SGD",
            "init_args": {"momentum": 0.5},
        },
    }[form]
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump({"model": {"init_args": {"optimizer": part}}}))
    name, values = optimizer_of(printed("--config", EXPERIMENT, "--config", second))
    expected = {"file": (0.01, 0.95), "class": (TORCH_LR, 0.0)}
    assert name == "SGD"
    assert (values["lr"], values["momentum"]) == expected.get(form, (TORCH_LR, 0.5))


def test_the_same_class_keeps_what_the_file_says_unless_chosen_anew(printed):
    name, values = optimizer_of(
        printed("--config", EXPERIMENT, "--model.optimizer.lr=0.3")
    )
    assert (name, values["lr"], values["bounce_every"]) == ("BBI", 0.3, 100)
    _, values = optimizer_of(printed("--config", EXPERIMENT, "--model.optimizer=BBI"))
    assert (values["lr"], values["bounce_every"]) == (0.01, 1000)


def test_data_by_flag(printed):
    flags = ["--data.batch_size=7", "--data=datamodules.MNIST"]
    data = printed("--config", EXPERIMENT, *flags)["data"]
    assert data["class_path"] == "datamodules.MNIST"
    assert data["init_args"]["val_size"] == 5000  # MNIST's; that of Digits is 250
    assert data["init_args"]["batch_size"] == 50


def test_a_network_by_flag(printed):
    flags = ["--model.network.outputs=12", "--model.network=modules.LeNet5"]
    settings = printed("--config", EXPERIMENT, *flags)
    network = settings["model"]["init_args"]["network"]
    assert network["class_path"] == "modules.LeNet5"
    assert network["init_args"] == {"outputs": 10}


def test_the_chosen_optimizer_is_the_one_that_trains(fit, tmp_path):
    from torch import load

    assert fit("--model.optimizer", "SGD", "--name", "sgd").code == 0
    folder = tmp_path / "logs" / "sgd" / "version_0"
    checkpoint = load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    group = checkpoint["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == TORCH_LR and "f_min" not in group


def test_an_optimizer_by_import_path(fit, tmp_path):
    assert fit("--model.optimizer", "torch.optim.Adagrad").code == 0
    file = tmp_path / "logs" / "bbi_digits" / "version_0" / "config.yaml"
    name, _ = optimizer_of(yaml.safe_load(file.read_text()))
    assert name == "Adagrad"


def test_a_schedule_is_dropped_by_null(cli):
    file = ROOT / "configs" / "experiment" / "entropysgd_mnistconv.yaml"
    result = cli("fit", "--config", file, "--model.scheduler=null", "--print_config")
    assert (result.code, result.err) == (0, "")
    assert yaml.safe_load(result.out)["model"]["init_args"]["scheduler"] is None
