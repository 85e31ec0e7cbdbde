"""The stability mask against the conditions of convergence, term by term."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_ecd.theory import save_kernel
from lightning_ecd.theory.problems import KernelFile, PowerLaws
from tests.cli.conftest import ROOT, cli  # noqa: F401
from tests.reference import sgd_theory as ref
from tests.tune.commands import rows_of
from tune.constraints import bind
from tune.search import Search
from tune.stability import StabilityMask

EXPERIMENT = str(ROOT / "configs/experiment/regimes_digits.yaml")
SPACE = {
    "lr": "LogUniform(0.1, 4)",
    "momentum": "Uniform(-0.8, 0.95)",
    "data.batch_size": [1, 2, 10],
    "weight_decay": None,
}
#: Digits and a net so small that a kernel takes no time.
SMALL = ["--data.samples=30", "--model.network.width=8", "--trainer.max_steps=4"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
SMALL += ["--trainer.callbacks.rank=0", "--data.steps_per_epoch=2"]

LAMBDAS = [(k + 1) ** -1.5 for k in range(20)]
N = len(LAMBDAS)
POINTS = [
    (alpha, beta, b)
    for alpha in (0.05, 0.3, 0.8, 1.5, 2.5, 3.7)
    for beta in (-0.7, -0.2, 0.0, 0.5, 0.9)
    for b in (1, 3, 20)
]


def noise(b, samples=N):
    return (samples - b) / ((samples - 1) * b)


def stable(lams, alpha, beta, b, tau=1.0):
    """The two conditions: S > 0 for every mode at z = 1, and U(1) < 1."""
    gamma = noise(b, len(lams))
    if min(ref.S(1, lam, alpha, beta, gamma, tau) for lam in lams) <= 0:
        return False
    return ref.U(1, lams, alpha, beta, gamma, 1.0, tau) < 1


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after


def asked(mask, *flags, space=None):
    """Return what asks a mask about the points of a search, and its trials."""
    search = Search(
        "train/epoch_loss",
        "min",
        EXPERIMENT,
        arguments=[*SMALL, *flags],
        space=space or SPACE,
        backend="local",
        constraint=mask,
    )
    (own,) = search.settings().values()
    objective = search.objective("HeavyBall", own, search.metric)
    return bind(mask, objective, search._space("HeavyBall", own)), objective


def point(alpha, beta, b):
    return {"lr": alpha, "momentum": beta, "data.batch_size": b}


# -- the region --------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, -1.0])
def test_the_region_is_that_of_the_two_conditions(tau):
    ask, _ = asked(StabilityMask(PowerLaws(1.5, 1.0, N), tau))
    expected = [stable(LAMBDAS, *place, tau) for place in POINTS]
    found = [ask(point(*place)) is None for place in POINTS]
    assert found == expected
    assert 20 < sum(expected) < len(POINTS) - 20


def test_the_reason_names_the_condition_and_the_learning_rate_that_it_needs():
    ask, _ = asked(StabilityMask(PowerLaws(1.5, 1.0, N)))
    for alpha, beta, b in POINTS:
        reason = ask(point(alpha, beta, b))
        if reason is None:
            continue
        gamma = noise(b)
        alone = min(ref.S(1, lam, alpha, beta, gamma, 1.0) for lam in LAMBDAS) > 0
        sums = ref.U(1, LAMBDAS, alpha, beta, gamma, 1.0, 1.0)
        start = f"U(1) = {sums:.3g} is not below 1" if alone else "a mode by itself"
        assert reason.startswith(start)
        critical = float(reason.rsplit(" ", 1)[1])
        assert stable(LAMBDAS, 0.999 * critical, beta, b)
        assert not stable(LAMBDAS, 1.001 * critical, beta, b)


def test_losses_of_the_recursion_decay_inside_and_grow_outside():
    ask, _ = asked(StabilityMask(PowerLaws(1.5, 1.0, N)))
    for alpha, beta, b in POINTS[::4]:
        steps, start = 1500, [1.0 / N] * N
        rates = ([alpha] * steps, [beta] * steps, [b] * steps)
        with np.errstate(over="ignore", invalid="ignore"):
            losses = ref.spectral_diagonal(LAMBDAS, start, N, *rates, 1.0, 1.0)
        grows = not losses[-1] < losses[500]
        assert grows == (ask(point(alpha, beta, b)) is not None), (alpha, beta, b)


@pytest.mark.parametrize(
    "place", [(0.0, 0.0, 1), (0.1, 1.0, 1), (0.1, -1.0, 1), (0.1, 0.0, 21)]
)
def test_what_is_no_setting_of_the_theory_is_forbidden(place):
    ask, _ = asked(StabilityMask(PowerLaws(1.5, 1.0, N)))
    assert f"1 <= data.batch_size <= {N}" in ask(point(*place))


# -- the spectrum ------------------------------------------------------------------


def spectrum_of(objective):
    """Eigenvalues of K/N by gradients, of the network that a trial begins with."""
    line = objective.build({}, Path("line"), "cpu")
    line.datamodule.setup("fit")
    loader = line.datamodule.train_dataloader()
    network = line.model.double()
    X = loader.tensors[0][loader.indices].double()
    K = ref.tangent_kernel(lambda x: network(x[None])[0], [*network.parameters()], X)
    return np.linalg.eigvalsh(K / len(X)).clip(0)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_spectrum_is_that_of_the_experiments_kernel(normalised):
    flag = f"--trainer.callbacks.normalize_lr={str(normalised).lower()}"
    ask, objective = asked(StabilityMask(), flag)
    lams = spectrum_of(objective)
    unit = lams.max() if normalised else 1.0  # lr is α of these eigenvalues
    found = pickle.loads(pickle.dumps(ask))  # as workers get it
    critical = float(found(point(1e6, 0.3, 2)).rsplit(" ", 1)[1])
    assert stable(lams / unit, 0.999 * critical, 0.3, 2)
    assert not stable(lams / unit, 1.001 * critical, 0.3, 2)
    assert found(point(0.999 * critical, 0.3, 2)) is None


def test_without_the_callback_lr_is_the_optimizers_own():
    ask, objective = asked(StabilityMask(), "--trainer.callbacks=[]")
    lams = spectrum_of(objective)
    critical = float(ask(point(1e6, 0.0, 1)).rsplit(" ", 1)[1])
    assert stable(lams, 0.999 * critical, 0.0, 1)
    assert not stable(lams, 1.001 * critical, 0.0, 1)


def test_workers_get_no_kernel(tmp_path):
    K = torch.diag(torch.arange(1.0, 301.0))
    save_kernel(tmp_path / "kernel.pt", K, torch.randn(300))
    ask, _ = asked(StabilityMask(KernelFile(str(tmp_path / "kernel.pt"))))
    assert len(pickle.dumps(ask)) < 8 * 300 * 300 / 10
    # b = N: there is no noise, and 2 (1 + β) is the limit
    assert ask(point(1.99, 0.0, 300)) is None
    assert ask(point(2.01, 0.0, 300)) is not None


# -- the command -------------------------------------------------------------------

SEARCH = {
    "experiment": EXPERIMENT,
    "arguments": SMALL,
    "metric": "train/epoch_loss",
    "mode": "min",
    "samples": 6,
    "backend": "local",
    "space": SPACE,
}


def search_file(folder, **constraint):
    settings = {"class_path": "tune.stability.StabilityMask", "init_args": constraint}
    (folder / "search.yaml").write_text(json.dumps(SEARCH | {"constraint": settings}))
    return folder / "search.yaml"


def test_the_command_runs_what_is_stable_alone(tmp_path, cli):  # noqa: F811
    result = cli("tune", "--config", search_file(tmp_path))
    assert (result.code, result.err) == (0, "")
    rows = rows_of("logs/search/version_0/results.csv")
    _, objective = asked(StabilityMask())
    lams = spectrum_of(objective)
    for row in rows:
        place = (float(row["config/lr"]), float(row["config/momentum"]))
        inside = stable(lams / lams.max(), *place, int(row["config/data.batch_size"]))
        assert row["status"] == ("completed" if inside else "infeasible")
        assert ("lr must be below" in row["reason"]) != inside
    assert {row["status"] for row in rows} == {"completed", "infeasible"}


def test_a_kernel_is_found_beside_the_search(tmp_path, cli):  # noqa: F811
    (tmp_path / "configs").mkdir()
    K = torch.diag(torch.tensor([1e3] + [1.0] * 29))
    save_kernel(tmp_path / "configs/kernel.pt", K, torch.randn(30))
    path = "lightning_ecd.theory.problems.KernelFile"
    problem = {"class_path": path, "init_args": {"file": "kernel.pt"}}
    file = search_file(tmp_path / "configs", problem=problem)
    assert cli("tune", "--config", file, "--samples=6").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--constraint.tau=2"], ["tau", "at most 1"]),
        (["--constraint.memory=1e-9"], ["30 samples", "GiB"]),
        (
            [
                "--constraint.problem=lightning_ecd.theory.problems.KernelFile",
                "--constraint.problem.file=gone.pt",
            ],
            ["kernel", "gone.pt"],
        ),
        (
            ['--space={"lr": [0.1], "data.samples": [20], "weight_decay": null}'],
            ["StabilityMask", "data.samples"],
        ),
        (["--arguments+=--data.order=shuffled"], ["StabilityMask", "data.order"]),
        (
            ["--arguments+=--model.optimizer.weight_decay=0.1"],
            ["StabilityMask", "weight_decay"],
        ),
        (
            ["--arguments+=--model.scheduler=torch.optim.lr_scheduler.StepLR"]
            + ["--arguments+=--model.scheduler.step_size=1"],
            ["StabilityMask", "model.scheduler"],
        ),
        (
            ["--arguments+=--trainer.callbacks.rates=lightning_ecd.theory.Power"],
            ["StabilityMask", "rates"],
        ),
        (
            ['--optimizers={"Adam": {}}', '--space={"lr": [0.1]}'],
            ["StabilityMask", "momentum", "betas"],
        ),
    ],
    ids=str,
)
def test_what_the_theory_does_not_speak_of_is_one_line(flags, words, tmp_path, cli):  # noqa: F811
    result = cli("tune", "--config", search_file(tmp_path), *flags)
    assert result.code == 2
    assert all(word in result.error for word in words), result.error
    assert not list(tmp_path.rglob("metrics.csv"))
