"""Where a table's numbers come from: which command runs a file, and what it tells."""

import pytest
import torch

from lightning_ecd.errors import UserError
from tests.cli.conftest import ROOT, cli  # noqa: F401
from tune.sources import SOURCES, kind_of, run_theory, run_trajectories

CONFIGS = ROOT / "configs"
LAW = """\
problem:
  class_path: lightning_ecd.theory.problems.PowerLaws
  init_args: {nu: 1.5, kappa: 1.0, samples: 20}
study:
  class_path: lightning_ecd.theory.studies.LossMap
  init_args: {batches: [20], steps: 1, alpha: [0.0, 4.0, 5], beta: [-1.0, 1.0, 3]}
"""
COMPARISON = """\
data: {class_path: datamodules.Quadratics, init_args: {test_runs: 7, window: 5}}
model:
  class_path: modules.Evaluation
  init_args:
    problem: {class_path: modules.Quadratic}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.0}}
    others:
      Adam: {class_path: torch.optim.Adam, init_args: {lr: 0.1}}
"""


@pytest.mark.parametrize(
    "file, kind",
    [
        ("study/zakharov", "trajectories"),
        ("study/loss_map_powerlaw", "theory"),
        ("study/negative_momentum_map", "theory"),
        ("study/spectrum_mnist", "theory"),
        ("experiment/bbi_digits", "fit"),
        ("experiment/meta_hnn_mnist", "fit"),
        ("experiment/evaluate_quadratics", "test"),
    ],
)
def test_a_file_tells_which_command_runs_it(file, kind):
    assert kind_of(CONFIGS / f"{file}.yaml") == kind


def test_every_shipped_study_and_experiment_has_a_kind():
    """By folder and package, which the rule does not look at."""
    for file in (CONFIGS / "study").glob("*.yaml"):
        theory = "lightning_ecd.theory" in file.read_text()
        assert kind_of(file) == ("theory" if theory else "trajectories"), file
    for file in (CONFIGS / "experiment").glob("*.yaml"):
        tested = "modules.Evaluation" in file.read_text()
        assert kind_of(file) == ("test" if tested else "fit"), file


def test_a_file_without_keys_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="list.yaml"):
        kind_of(tmp_path / "list.yaml")


def test_theory_tells_numbers_but_no_lists(tmp_path):
    """Of full batches without momentum: the best is one step that ends all modes."""
    (tmp_path / "map.yaml").write_text(LAW)
    found = run_theory(["--config", str(tmp_path / "map.yaml")], 0)
    law = torch.arange(1, 21).double()
    rates, weights = law**-1.5, law**-2.0
    losses = [
        ((1 - alpha * rates) ** 2 * weights).sum() / weights.sum() / 40
        for alpha in (1.0, 2.0)
    ]
    best = min(losses)
    assert found["b_20/alpha"] == 1.0 + losses.index(best)
    assert found["b_20/log_loss"] == pytest.approx(best.log().item())
    assert "b_20/local_minima" not in found
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.parametrize(
    "run, content, flag, words",
    [
        (run_theory, LAW, "--problem.nu=-1", "nu"),
        (run_theory, LAW, "--study.batches=[-3]", "batches"),
        (
            run_trajectories,
            "function: lightning_ecd.functions.Quadratic\nsteps: 1\n"
            "optimizers: {SGD: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}}\n",
            "--steps=0",
            "steps",
        ),
    ],
)
def test_bad_settings_of_a_study_are_one_line(run, content, flag, words, tmp_path):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        run(["--config", str(tmp_path / "study.yaml"), flag], 0)
    assert "\n" not in str(error.value)


def test_a_comparison_is_tested_not_fitted(tmp_path, cli):  # noqa: F811
    """SGD with lr 0 stays at 0, where the loss is |y|^2, of mean 10 for all steps."""
    (tmp_path / "both.yaml").write_text(COMPARISON)
    found = SOURCES["test"](["--config", str(tmp_path / "both.yaml")], 0)
    assert found["test/final/SGD"] == found["test/loss"] == pytest.approx(10, abs=6)
    assert 0 < found["test/final/Adam"] < found["test/final/SGD"]
    assert found["test/final_error/SGD"] == found["test/final_error"] > 0
    assert not any(name.startswith(("val/", "train/")) for name in found)
