"""What a run leaves below logs/, and what resuming makes of it."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from lightning_ecd.__main__ import main
from lightning_ecd.optimizers import REGISTRY

SMALL = [
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "6"),
    *("--trainer.log_every_n_steps", "3", "--trainer.enable_progress_bar", "false"),
    *("--checkpoint.monitor", "val/accuracy"),
]


def load(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory, request):
    """Enter a folder where one run of the digits experiment has been made."""
    folder = tmp_path_factory.mktemp("runs")
    config = request.config.rootpath / "configs/experiment/bbi_digits.yaml"
    before = os.getcwd()
    os.chdir(folder)
    main(["fit", "--config", str(config), *SMALL])
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def run(place):
    return place / "logs/bbi_digits/version_0"


def test_folder_holds_config_checkpoints_logs_and_figure(run):
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {
        "config.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
        "phase_space.png",
    }
    assert (run / "phase_space.png").read_bytes()[:4] == b"\x89PNG"


def test_metrics_hold_loss_evaluations_and_energy_of_the_same_step(run):
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    steps = [row for row in rows if row["train/loss"]]
    assert [row["step"] for row in steps] == ["2", "5", "8", "11"]
    assert [float(row["train/evaluations"]) for row in steps] == [3, 6, 9, 12]
    for row in steps:  # V is the loss minus f_min = 1e-6
        difference = float(row["train/loss"]) - float(row["optimizer/V"])
        assert difference == pytest.approx(1e-6, abs=1e-6)


def test_hyperparameter_tab_declares_the_metrics_and_the_settings(run):
    events = EventAccumulator(str(run)).Reload()
    contents = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    data = plugin_data_pb2.HParamsPluginData.FromString(contents)
    declared = {info.name.tag for info in data.experiment.metric_infos}
    assert declared == {"val/accuracy", "val/loss", "test/accuracy", "test/loss"}
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info
    assert settings.hparams["optimizer"].string_value == "BBI"
    assert settings.hparams["optimizer/lr"].number_value == pytest.approx(0.2)
    tags = events.Tags()
    assert "hp_metric" not in tags["scalars"]
    assert {"optimizer/energy", "train/loss", "val/accuracy"} <= set(tags["scalars"])
    assert "optimizer/phase_space" in tags["images"]


def test_saved_config_is_the_run(place, run):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    optimizer = saved["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "lightning_ecd.optimizers.BBI"
    assert optimizer["init_args"]["bounce_every"] == 100
    again = ["fit", "--config", str(run / "config.yaml"), "--name", "again"]
    main(again)
    first = load(run / "checkpoints/last.ckpt")["state_dict"]
    second = load(place / "logs/again/version_0/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resuming_goes_on_in_the_folder_to_the_bit(place, run):
    config = ["fit", "--config", str(run / "config.yaml")]
    main([*config, "--name", "long", "--trainer.max_epochs", "4"])
    main([*config, "--name", "short", "--trainer.max_epochs", "2"])
    short = place / "logs/short/version_0"
    rows = (short / "metrics.csv").read_text().splitlines()
    main([*config, "--name", "short", "--trainer.max_epochs=4", "--ckpt_path=last"])
    assert [path.name for path in (place / "logs/short").iterdir()] == ["version_0"]
    kept = (short / "metrics.csv").read_text().splitlines()
    assert kept[: len(rows)] == rows and len(kept) > len(rows)
    resumed = load(short / "checkpoints/last.ckpt")["state_dict"]
    whole = load(place / "logs/long/version_0/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_resuming_refuses_a_changed_hyperparameter(run, capsys):
    checkpoint = str(run / "checkpoints/last.ckpt")
    args = ["fit", "--config", str(run / "config.yaml"), "--ckpt_path", checkpoint]
    with pytest.raises(SystemExit, match="2"):
        main([*args, "--model.optimizer.lr", "0.1"])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model.optimizer.lr is 0.1, the checkpoint has 0.2" in line


def test_a_run_that_is_refused_leaves_no_folder(place, run, capsys):
    config = ["fit", "--config", str(run / "config.yaml"), "--name=refused"]
    with pytest.raises(SystemExit, match="2"):
        main([*config, "--model.optimizer.lr=-1"])
    assert "lr" in capsys.readouterr().err
    assert not (place / "logs/refused").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_is_evaluated_without_a_new_folder(place, run, command):
    checkpoint = str(run / "checkpoints/last.ckpt")
    args = ["--config", str(run / "config.yaml"), "--ckpt_path", checkpoint]
    before = sorted(path.name for path in run.parent.iterdir())
    main([command, *args])
    assert sorted(path.name for path in run.parent.iterdir()) == before
    if command == "predict":
        lines = (run / "predictions.csv").read_text().split()
        assert len(lines) == 297 and set(lines) <= set("0123456789")


def test_a_class_chosen_by_flag_starts_from_its_own_defaults(place, run, request):
    config = request.config.rootpath / "configs/experiment/bbi_digits.yaml"
    flags = ["--model.optimizer", "SGD", "--model.optimizer.momentum", "0.5"]
    once = ["--trainer.max_steps", "1", "--test_after_fit", "false", "--name", "sgd"]
    main(["fit", "--config", str(config), *SMALL, *flags, *once])
    file = Path("logs/sgd/version_0/config.yaml")
    optimizer = yaml.safe_load(file.read_text())["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert optimizer["init_args"]["momentum"] == 0.5
    assert optimizer["init_args"]["lr"] == 1e-3  # torch's, not BBI's 0.2


def test_every_configuration_of_an_optimizer_trains_one_step(place, request):
    folder = request.config.rootpath / "configs"
    experiment = str(folder / "experiment/bbi_digits.yaml")
    files = sorted((folder / "optimizer").glob("*.yaml"))
    assert {file.stem for file in files} == {name.lower() for name in REGISTRY}
    for file in files:
        flags = ["--trainer.fast_dev_run", "true", "--model.optimizer", str(file)]
        main(["fit", "--config", experiment, *flags])
    assert not (place / "logs/bbi_digits/version_1").exists()


def test_every_experiment_states_its_published_numbers(request):
    for file in (request.config.rootpath / "configs/experiment").glob("*.yaml"):
        head = [line for line in file.read_text().splitlines() if line[:1] == "#"]
        assert any(line.startswith("# Published") for line in head), file.name


def test_listing_as_json_tells_all_traits(capsys):
    main(["optimizers", "ecdsep", "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert record["name"] == "ECDSep" and record["needs_loss"] is True
    assert record["ranges"]["lr"].startswith("LogUniform(")


def test_table_of_the_readme_is_the_registry(capsys, request):
    main(["optimizers", "--markdown"])
    readme = (request.config.rootpath / "README.md").read_text()
    assert capsys.readouterr().out.strip() in readme
