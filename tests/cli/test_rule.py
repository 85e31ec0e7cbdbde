"""`lightning-ecd rule`: what a trained rule is; a small file of it. Meta-training."""

from pathlib import Path

import pytest
import torch

from lightning_ecd.rules import read_rule
from lightning_ecd.trained import shipped
from tests.cli.conftest import ROOT

META = ROOT / "configs" / "experiment" / "meta_hnn_quadratics.yaml"
FEW = ["--data.runs=2", "--data.val_runs=3", "--data.test_runs=3", "--data.steps=30"]
QUICK = [
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
    *("--data.runs_per_epoch=2", "--trainer.log_every_n_steps=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]


@pytest.fixture
def run(cli):
    """The folder of a short meta-training run."""
    result = cli("fit", "--config", META, *FEW, *QUICK)
    assert (result.code, result.err) == (0, "")
    assert "test/final: " in result.out
    return Path("logs/meta_hnn_quadratics/version_0")


def test_a_run_becomes_a_small_file_beside_its_configuration(run, cli):
    for name in ("best", "last"):
        checkpoint = run / "checkpoints" / f"{name}.ckpt"
        result = cli("rule", "--checkpoint", checkpoint, "--output", f"a/{name}.pt")
        assert (result.code, result.err) == (0, "")
        assert "HNNRule" in result.out and "19" in result.out
        small, whole = read_rule(f"a/{name}.pt"), read_rule(checkpoint)
        assert small.lr == whole.lr == 0.001
        for a, b in zip(small.rule.parameters(), whole.rule.parameters(), strict=True):
            assert torch.equal(a, b)
        made_by = Path(f"a/{name}.yaml").read_text()
        assert made_by == (run / "config.yaml").read_text()


def test_a_trained_rule_trains_any_task(run, fit):
    """By the flags of the command line."""
    checkpoint = (run / "checkpoints" / "last.ckpt").resolve()
    result = fit(
        *("--model.optimizer", "Learned", "--model.optimizer.lr", "0.01"),
        *("--model.optimizer.checkpoint", checkpoint),
    )
    assert (result.code, result.err) == (0, "")


def test_a_resumed_run_equals_the_uninterrupted_one(run, cli):
    straight = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    cut = cli("fit", "--config", META, *FEW, *QUICK, "--trainer.max_steps=1")
    assert cut.code == 0
    cli(
        *("fit", "--config", META, *FEW, *QUICK),
        *("--ckpt_path", "logs/meta_hnn_quadratics/version_1/checkpoints/last.ckpt"),
    )
    file = "logs/meta_hnn_quadratics/version_1/checkpoints/last.ckpt"
    resumed = torch.load(file, weights_only=True)
    assert resumed["global_step"] == straight["global_step"] == 8
    for key, weight in straight["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][key])


def test_evolution_with_staggered_runs_is_an_option(cli):
    result = cli(
        *("fit", "--config", META, *FEW, *QUICK, "--model.estimator=pes"),
        *("--data.stagger=true", "--data.longest=40"),
    )
    assert (result.code, result.err) == (0, "")


def test_staggered_runs_without_evolution_are_one_line(cli):
    settings = ["--data.stagger=true", "--data.window=7"]
    result = cli("fit", "--config", META, *FEW, *QUICK, *settings)
    assert result.code == 2
    assert "let data.stagger be false, or model.estimator be es" in result.error


def test_a_file_keeps_the_configuration_of_the_one_it_is_made_of(cli):
    Path("config.yaml").write_text("another")
    for source, target in (("lstm_quadratics", "a/x"), ("a/x.pt", "b/y")):
        result = cli("rule", "--checkpoint", source, "--output", f"{target}.pt")
        assert (result.code, result.err) == (0, "")
        made_by = Path(f"{target}.yaml").read_text()
        assert "lightning_ecd.rules.LSTMRule" in made_by


def test_rules_that_come_with_the_project_are_listed(cli):
    result = cli("rule")
    assert (result.code, result.err) == (0, "")
    names = shipped()
    assert {"lstm_quadratics", "hnn_quadratics", "phnn_quadratics"} <= set(names)
    assert all(name in result.out for name in names)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--checkpoint=none.pt"], "none.pt is neither a file nor one of"),
        (["--output=a.pt"], "output needs a checkpoint"),
        (["--checkpoint=lstm_quadratics", "--output=a.ckpt"], "output must end in .pt"),
        (["--chekpoint=a"], "did you mean --checkpoint?"),
    ],
)
def test_bad_arguments_are_one_line(args, message, cli):
    result = cli("rule", *args)
    assert result.code == 2 and message in result.error


def test_a_missing_rule_is_one_line(fit):
    result = fit("--model.optimizer=Learned", "--model.optimizer.checkpoint=none")
    assert result.code == 2
    assert "none is neither a file nor one of the trained rules" in result.error
