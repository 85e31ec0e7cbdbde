"""The theory's curves beside a run: on linear networks they are the run."""

import json
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import SyntheticPowerLaw
from lightning_ecd.callbacks import Forecast, Regimes
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import HeavyBall
from lightning_ecd.theory import (
    Jacobi,
    Power,
    from_power_law,
    synthetic_kernel,
)
from modules import Regression
from tests.callbacks import linear
from tests.reference import sgd_theory as reference

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

N = 24


def problem(**settings):
    return linear.problem(N, **settings)


def task(*args, **settings):
    return linear.task(N, *args, **settings)


def fit(callback, module, data=None, **settings):
    linear.fit([callback], module, data or problem(), **settings)


@pytest.mark.parametrize(
    "momentum, rates",
    [
        (0.0, None),
        (0.6, None),
        (-0.4, None),
        (0.0, Jacobi(1.0, 1.0)),
        (0.3, Power(0.5)),
    ],
)
def test_a_linear_network_is_its_own_linearisation(momentum, rates, tmp_path):
    callback = Regimes(rates=rates, runs=1, rank=None)
    fit(callback, task(0.7, momentum), folder=tmp_path)
    network = torch.tensor(callback.curves["network"])
    linearized = torch.tensor(callback.curves["linearized"])[:, 0]
    assert len(network) > 20
    torch.testing.assert_close(network, linearized, rtol=1e-6, atol=0)
    # with noise the Jacobi schedule diverges in the end
    assert (network[-1] < network[0]) == (not isinstance(rates, Jacobi))


def test_torch_s_own_sgd_is_followed_too(tmp_path):
    callback = Regimes(rates=Jacobi(), rank=0, taus=[])

    def sgd(params, lr, momentum):
        return torch.optim.SGD(params, lr, momentum)

    fit(callback, task(optimizer=sgd), folder=tmp_path)
    linearized = torch.tensor(callback.curves["linearized"])[:, 0]
    network = torch.tensor(callback.curves["network"])
    torch.testing.assert_close(network, linearized, rtol=1e-6, atol=0)
    assert set(callback.curves) == {"step", "network", "linearized"}


def test_the_rate_is_that_of_the_normalised_kernel(tmp_path):
    class Thrice(SyntheticPowerLaw):
        def read(self):
            x, y = super().read()
            return 3 * x, y

    curves = []
    for data, lr, normalize in (
        (problem(), 0.5, True),
        (Thrice(1.5, 0.75, N, batch_size=3, steps_per_epoch=7), 0.5, True),
        (Thrice(1.5, 0.75, N, batch_size=3, steps_per_epoch=7), 0.5 / 9, False),
    ):
        callback = Regimes(normalize_lr=normalize, rank=None)
        fit(callback, task(lr), data, folder=tmp_path)
        curves.append(torch.tensor(callback.curves["network"]))
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(curves[2], curves[0], rtol=1e-5, atol=0)


def test_averages_of_many_runs_meet_the_exact_average(tmp_path):
    callback = Regimes(runs=3000, rank=None, points=10)
    fit(callback, task(), steps=40, folder=tmp_path)
    runs = torch.tensor(callback.curves["linearized"], dtype=torch.float64)
    exact = torch.tensor(callback.curves["averaged"], dtype=torch.float64)
    error = runs.std(1) / runs.shape[1] ** 0.5
    assert ((runs.mean(1) - exact).abs()[1:] < 5 * error[1:]).all()
    # runs of other seeds have other mini-batches
    assert runs[-1].std() > 0


def test_the_start_is_the_problem_s_own(tmp_path):
    callback = Regimes(rank=None)
    fit(callback, task(), folder=tmp_path)
    spectrum = from_power_law(1.5, 0.75, N)
    K, d = synthetic_kernel(spectrum, 42)
    torch.testing.assert_close(
        callback.companions.spectrum.eigenvalues,
        spectrum.eigenvalues,
        rtol=0,
        atol=1e-6,
    )
    starts = [values[0] for name, values in callback.curves.items() if name != "step"]
    expected = (d @ d).item() / (2 * N)
    assert all(
        torch.as_tensor(start).mean().item() == pytest.approx(expected, rel=1e-5)
        for start in starts
    )


@pytest.mark.parametrize("rank", [None, 7])
def test_every_mode_is_tracked_where_the_losses_are(rank, tmp_path):
    class Logged(pl.loggers.CSVLogger):
        rows: ClassVar[dict[int, dict[str, float]]] = {}

        def log_metrics(self, metrics, step=None):
            self.rows.setdefault(step, {}).update(metrics)

    callback = Regimes(rank=rank, track=True, taus=[1.0, -0.5], runs=2)
    fit(callback, task(0.7, 0.3), steps=30, folder=tmp_path, logger=Logged(tmp_path))
    (file,) = tmp_path.rglob("regimes.pt")
    found = torch.load(file, weights_only=True)
    steps = found["step"].tolist()
    assert steps[0] == 0 and steps[-1] == 30
    for name in ("linearized", "averaged", "tau_1", "tau_-0.5"):
        modes, losses = found[f"modes/{name}"], found[name].double()
        assert modes.shape == (len(steps), N)
        whole = losses.mean(1) if name == "linearized" else losses
        torch.testing.assert_close(modes.sum(1) / (2 * N), whole, rtol=1e-6, atol=0)
    if rank is not None:  # the others' noise is left out
        return
    # the transcription, from the same kernel in its eigenbasis
    lams, U = np.linalg.eigh(callback.companions.K.numpy())
    lams, U = lams[::-1] / N, U[:, ::-1]
    d = synthetic_kernel(from_power_law(1.5, 0.75, N), 42)[1].numpy()
    courses = [[0.7] * 30, [0.3] * 30, [3] * 30]
    cs = (U.T @ d) ** 2
    exact = reference.averaged_moments(callback.companions.K.numpy(), d, *courses)
    exact = [cs, *(np.diag(U.T @ C @ U) for C in exact)]
    for tau in (1.0, -0.5):
        rough = reference.diagonal_moments(lams, cs, N, *courses, 1.0, tau)
        rough = [cs, *(np.array(C) for C in rough)]
        for row, step in enumerate(steps):
            for name, C in (("averaged", exact), (f"tau_{tau:g}", rough)):
                np.testing.assert_allclose(
                    found[f"modes/{name}"][row], C[step], rtol=1e-5, atol=1e-7
                )
            expected = np.abs(rough[step] - exact[step]).sum() / exact[step].sum()
            logged = Logged.rows[step][f"regimes/error_tau_{tau:g}"]
            assert logged == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert logged > 1e-3  # of the last step


def test_the_folder_gets_curves_numbers_and_a_figure(tmp_path):
    callback = Regimes(rank=5, taus=[1.0, 0.5])
    fit(callback, task(), folder=tmp_path)
    numbers = json.loads((tmp_path / "theory.json").read_text())
    assert numbers["samples"] == N and numbers["batch"] == 3
    assert numbers["alpha"] == pytest.approx(0.7)
    assert numbers["alpha"] < numbers["alpha_crit"]
    assert 0 < numbers["U(1)"] < 1
    arrays = torch.load(tmp_path / "regimes.pt", weights_only=True)
    assert {"network", "averaged", "tau_1", "tau_0.5", "eigenvalues"} <= set(arrays)
    assert (tmp_path / "regimes.png").stat().st_size > 10_000


def test_a_resumed_run_goes_on_to_the_bit(tmp_path):
    def regimes():
        return Regimes(rates=Jacobi(), runs=2, rank=6, track=True)

    whole = regimes()
    fit(whole, task(), folder=tmp_path)

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 25:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    first = regimes()
    linear.fit([first, Stop()], task(), problem(), folder=tmp_path)
    second = regimes()
    fit(second, task(), folder=tmp_path, ckpt_path=tmp_path / "middle.ckpt")
    assert second.curves == whole.curves
    assert all(
        torch.equal(torch.stack(second.modes[name]), torch.stack(rows))
        for name, rows in whole.modes.items()
    )
    assert {"linearized", "averaged", "tau_1", "tau_-1"} == set(whole.modes)


@pytest.fixture
def middle(tmp_path):
    """A checkpoint of a run with two sampled runs, rank 4 and two τ."""
    callback = Regimes(runs=2, rank=4, track=True)
    trainer = linear.fit([callback], task(), problem(), steps=20, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "middle.ckpt")
    return tmp_path / "middle.ckpt"


def test_the_same_settings_go_on(middle, tmp_path):
    callback = Regimes(runs=2, rank=4, track=True)
    fit(callback, task(), folder=tmp_path, ckpt_path=middle, steps=30)
    assert callback.curves["step"][0] == 0 and callback.curves["step"][-1] == 30


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 3},
        {"runs": 0},
        {"rank": 5},
        {"rank": None},
        {"rank": 0},
        {"taus": [1.0]},
        {"taus": [1.0, 0.5]},
        {"track": False},
    ],
)
def test_other_settings_do_not_go_on(change, middle, tmp_path):
    callback = Regimes(**{"runs": 2, "rank": 4, "track": True, **change})
    with pytest.raises(UserError, match="Regimes: the checkpoint's .* other settings"):
        fit(callback, task(), folder=tmp_path, ckpt_path=middle, steps=30)


def test_a_checkpoint_of_an_older_version_does_not_go_on(middle, tmp_path):
    content = torch.load(middle, weights_only=True)
    (state,) = (s for name, s in content["callbacks"].items() if "Regimes" in name)
    del state["modes"]
    torch.save(content, tmp_path / "older.ckpt")
    callback = Regimes(runs=2, rank=4, track=True)
    with pytest.raises(UserError, match="older version"):
        fit(callback, task(), folder=tmp_path, ckpt_path=tmp_path / "older.ckpt")


def test_regimes_cannot_join_a_run_that_is_resumed(tmp_path):
    trainer = linear.fit([], task(), problem(), steps=20, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="plain.ckpt is of a run without it"):
        fit(Regimes(), task(), folder=tmp_path, ckpt_path=tmp_path / "plain.ckpt")


@pytest.mark.parametrize(
    "make, data, message",
    [
        (lambda p: torch.optim.Adam(p), {}, "HeavyBall"),
        (
            lambda p: torch.optim.SGD(p, 0.1, nesterov=True, momentum=0.9),
            {},
            "nesterov",
        ),
        (lambda p: HeavyBall(p, 0.1), {"order": "shuffled"}, "data.order=independent"),
    ],
)
def test_what_the_theory_does_not_speak_of_is_refused(make, data, message, tmp_path):
    module = Regression(lambda: linear.from_zero(N), make)
    settings = {"steps_per_epoch": None, **data} if data else {}
    with pytest.raises(UserError, match=message):
        fit(Regimes(), module, problem(**settings), folder=tmp_path)


@pytest.mark.parametrize("callback", [Regimes, Forecast])
def test_a_fit_without_an_end_is_refused(callback, tmp_path):
    with pytest.raises(UserError, match="trainer.max_steps"):
        fit(callback(), task(), steps=-1, folder=tmp_path)


def test_accumulation_is_refused(tmp_path):
    with pytest.raises(UserError, match="accumulate_grad_batches"):
        fit(Regimes(), task(), folder=tmp_path, accumulate_grad_batches=2)


def test_matrices_that_do_not_fit_are_refused_before_they_are_made(
    tmp_path, monkeypatch
):
    monkeypatch.delattr("lightning_ecd.callbacks.regimes.kernel_of")
    # twelve and a half matrices of N x N numbers of 8 bytes: (10737 / 100)^(1/2)
    with pytest.raises(UserError, match="at most 10 samples fit"):
        fit(Regimes(rank=None, memory=1e-5), task(), folder=tmp_path)
    # five and a half
    with pytest.raises(UserError, match="at most 15 samples fit"):
        fit(Regimes(rank=5, memory=1e-5), task(), folder=tmp_path)


@pytest.mark.parametrize(
    "name, value", [("runs", -1), ("rank", -1), ("points", 1), ("memory", 0.0)]
)
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Regimes(**{name: value})


def test_a_regression_of_one_s_own_is_followed(tmp_path):
    class Own(Regression):
        pass

    module = Own(lambda: linear.from_zero(N), lambda params: HeavyBall(params, 0.7))
    callback = Regimes(rank=0)
    fit(callback, module, folder=tmp_path, steps=3)
    assert len(callback.curves["step"]) == 4
