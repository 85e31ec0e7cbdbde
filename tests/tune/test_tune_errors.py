"""Bad input to the command `tune` is one line that names it; exit code 2."""

import pytest

from tests.cli.conftest import cli  # noqa: F401
from tests.tune.commands import small


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--metric=val/acc"], ["val/acc", "val/accuracy"]),
        (["--mode=lowest"], ["mode", "lowest"]),
        (["--experiment=none.yaml"], ["none.yaml"]),
        (["--experiment=null"], ["experiment", "study"]),
        (["--study=small.yaml"], ["experiment", "study"]),
        (["--samples=0"], ["samples", "at least 1"]),
        (["--samples=many"], ["samples", "many"]),
        (["--sample=3"], ["sample", "samples"]),
        (["--space.lr=Uniform(1, 0)"], ["lr", "Uniform"]),
        (["--space.lr=Gaussian(0, 1)"], ["lr", "LogUniform(low, high)"]),
        (["--space.lrx=Uniform(0, 1)"], ["lrx", "extra_energy"]),
        (["--space.data.batch=Uniform(0, 1)"], ["batch"]),
        (['--optimizers={"Nope": {}}'], ["Nope", "BBI"]),
        (['--optimizers={"BBI": {"spaces": {"lr": [1]}}}'], ["spaces"]),
        (['--optimizers={"x": {"optimizer": "none.yaml"}}'], ["none.yaml"]),
        (["--searcher=tune.Grid"], ["space of lr", "grid"]),
        (["--searcher=tune.Nope"], ["searcher", "Nope"]),
        (["--searcher=tune.Optuna", "--searcher.startup=0"], ["startup", "at least 1"]),
        (["--scheduler=tune.ASHA", "--metric=test/accuracy"], ["scheduler", "test/"]),
        (["--scheduler=tune.ASHA", "--scheduler.grace_period=0"], ["grace_period"]),
        (["--scheduler=tune.PopulationBased"], ["PopulationBased", "backend to ray"]),
        (["--arguments=[--trainer.max_epoch=1]"], ["max_epoch"]),
        (["--arguments=[--data=datamodules.MNIST,--data.data_dir=gone]"], ["gone"]),
        (["--arguments=[--trainer.max_epochs=-7]"], ["max_epochs", "-7"]),
        (["--arguments=[--trainer.devices=2]"], ["trainer.devices must be 1"]),
        (["--arguments=[--model.optimizer.lr=-1]"], ["lr", "-1"]),
        (["--storage=small.yaml"], ["small.yaml"]),
        (["--repeat.seeds=[]"], ["repeat.seeds"]),
        (["--repeat.metric=nope"], ["nope", "val/accuracy"]),
        (["--repeat.against=none.csv"], ["none.csv"]),
        (["--repeat.vary=[model.seed]"], ["model.seed"]),
        (["--resources.gpus=1.5"], ["resources.gpus"]),
        (["--restore=nowhere"], ["restore", "nowhere", "search.json"]),
        (["--config=none.yaml"], ["none.yaml"]),
    ],
    ids=str,
)
def test_bad_input_is_one_line_that_names_it(flags, words, tmp_path, cli):  # noqa: F811
    start = ["--config", small(tmp_path)]
    if flags[0].startswith("--restore"):
        start = []
    result = cli("tune", *start, *flags)
    assert result.code == 2
    for word in words:
        assert word in result.error
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metric: a\nmode: min\nexperimnt: x.yaml\n", ["experimnt"]),
        ("metric: a\nmode: min\n", ["experiment", "study"]),
        ("mode: min\n", ["metric"]),
        ("metric: [a\n", ["parsing config", "line 1"]),
        ("study: none.yaml\nmetric: best\nmode: min\n", ["none.yaml"]),
    ],
    ids=["key", "none", "metric", "yaml", "study"],
)
def test_a_bad_file_is_one_line_that_names_the_key(text, words, tmp_path, cli):  # noqa: F811
    (tmp_path / "bad.yaml").write_text(text)
    result = cli("tune", "--config", "bad.yaml")
    assert result.code == 2
    assert all(word in result.error for word in words)


def test_nothing_can_change_when_a_search_goes_on(tmp_path, cli):  # noqa: F811
    result = cli("tune", "--restore", tmp_path, "--samples=9")
    assert result.code == 2
    assert "--samples" in result.error
    assert "--restore" in cli("tune", "--restore").error


def test_a_folder_whose_description_is_damaged_is_one_line(tmp_path, cli):  # noqa: F811
    (tmp_path / "search.json").write_text('{"metric": "val')
    result = cli("tune", "--restore", tmp_path)
    assert result.code == 2
    assert "search.json" in result.error


def test_help_names_the_arguments(cli):  # noqa: F811
    result = cli("tune", "--help")
    assert result.code == 0
    for word in ("--config", "--searcher", "--scheduler", "--backend", "--repeat"):
        assert word in result.out
