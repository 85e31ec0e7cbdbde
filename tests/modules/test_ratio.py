"""Losses, metrics, early stopping and ensembles of estimated ratios of densities."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.optim import SGD

from datamodules import Gaussians, Loader
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.errors import UserError
from lightning_ecd.figures import ratios
from lightning_ecd.optimizers import ECDSep
from modules import MLP, LikelihoodRatio
from modules.ratio_losses import LOSSES, estimate
from tests.modules.toys import trainer, weights
from tests.reference import ratio as reference

PAIRS = [(loss, kind) for loss, (_, kinds) in LOSSES.items() for kind in kinds]

network = partial(MLP, 1, [8], activation="tanh", dropout=0.1)


class Slope(nn.Module):
    """h = a x: under e^h the exact ratio of the default pair is a = 0.2."""

    def __init__(self, a=0.2):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x):
        return self.a * x


def make_task(build=network, optimizer=None, **settings):
    return LikelihoodRatio(build, optimizer or partial(SGD, lr=0.1), **settings)


def small(**settings):
    sizes = {"train_size": 64, "val_size": 20, "test_size": 50, "batch_size": 16}
    return Gaussians(**(sizes | settings))


# -- losses ------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "kind"), PAIRS)
def test_losses_and_ratios_equal_the_slow_ones(loss, kind):
    draws = torch.Generator().manual_seed(2)
    h = torch.cat([3 * torch.randn(40, generator=draws).double(), torch.zeros(1)])
    y = torch.randint(2, (41,), generator=draws)
    task = make_task(nn.Identity, loss=loss, parametrization=kind)
    found = task.loss((h.unsqueeze(1), y.double())).item()
    expected = reference.mean_loss(loss, kind, h.tolist(), y.tolist())
    assert found == pytest.approx(expected, rel=1e-12)
    ratios = task(h.unsqueeze(1)).tolist()
    slow = [reference.ratio(one, kind) for one in h.tolist()]
    assert ratios == pytest.approx(slow, rel=1e-8)


@pytest.mark.parametrize(("loss", "kind"), PAIRS)
def test_losses_and_gradients_stay_finite_in_float32(loss, kind):
    h = torch.tensor([[-30.0], [0.0], [30.0], [-30.0], [0.0], [30.0]])
    y = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    task = make_task(nn.Identity, loss=loss, parametrization=kind)
    h.requires_grad_()
    value = task.loss((h, y))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(h.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_first_parametrization_is_the_default(loss):
    names = {"mlc": "exponential", "sqr": "exponential", "bce": "odds", "mse": "odds"}
    assert make_task(loss=loss).parametrization == names[loss]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "hinge"}, "loss must be one of mlc, sqr, bce, mse"),
        ({"parametrization": "odds"}, "parametrization must be one of exponential"),
        ({"loss": "bce", "parametrization": "square"}, "one of odds, probit, arctan"),
    ],
)
def test_bad_values_name_the_argument_and_the_range(settings, named):
    with pytest.raises(ValueError, match=named):
        make_task(**settings)


#: Means and sigma of p1 and mean of p0 (whose sigma is 1).
LAWS = {"the paper's": (0.1, -0.1, 1.0), "wide apart": (1.0, -0.5, 0.8)}


def minimum(loss, law):
    found = reference.divergences(law[0], law[1], law[2])
    return {
        "mlc": -found["kl"] / 2,
        "bce": math.log(2) - found["js"],
        "sqr": found["root"],
        "mse": found["harmonic"] / 2,
    }[loss]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_smallest_mean_loss_is_the_divergence_of_the_docstring(loss, law):
    mu1, mu0, sigma1 = law
    at = partial(reference.population_loss, loss, mu1, mu0, sigma1=sigma1)
    best = at()
    assert best == pytest.approx(minimum(loss, law), abs=1e-6)  # 1e-7 is added to f
    assert at(tilt=0.05) > best + 1e-5
    assert at(tilt=-0.05) > best + 1e-5


def test_kl_of_two_normal_distributions():
    mu1, mu0, s = LAWS["wide apart"]
    expected = -math.log(s) + (s**2 + (mu1 - mu0) ** 2) / 2 - 0.5
    assert reference.divergences(mu1, mu0, s)["kl"] == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_the_exact_ratio_over_samples_is_the_minimum(loss):
    x, y, ratio = Gaussians(train_size=400_000).read("train")
    kind = LOSSES[loss][1][0]  # exponential or odds: h is the log ratio
    h = ratio.double().log()
    values = LOSSES[loss][0](estimate(h, kind), y.double())
    error = values.std().item() / 400_000**0.5
    assert values.mean().item() == pytest.approx(
        minimum(loss, LAWS["the paper's"]), abs=5 * error
    )


# -- metrics -----------------------------------------------------------------------


def run_test(task, data, folder, **settings):
    return trainer(folder, **settings).test(task, data, verbose=False)[0]


def test_the_exact_ratio_has_no_error(tmp_path):
    result = run_test(make_task(Slope), small(), tmp_path)
    assert result["test/weighted_error"] == pytest.approx(0.0, abs=1e-6)
    assert result["test/ratio_error"] == pytest.approx(0.0, abs=1e-6)
    assert result["test/ratio_dropped"] == 0.0


def test_errors_of_a_wrong_ratio(tmp_path):
    data = small()
    result = run_test(make_task(partial(Slope, 0.5)), data, tmp_path)
    x = data.read("test")[0][:, 0].double()
    errors = (torch.exp(0.5 * x) - torch.exp(0.2 * x)).abs()
    assert result["test/ratio_error"] == pytest.approx(errors.mean().item(), rel=1e-5)

    assert result["test/weighted_error"] == pytest.approx(weighted_error(0.5), rel=1e-3)


def weighted_error(slope):
    """The mean |e^(slope x) - e^(0.2 x)| over [-4, 4] with the weight N(0, 1)."""
    points = [-4 + i / 1000 for i in range(8001)]
    weight = [math.exp(-x * x / 2) for x in points]
    error = [abs(math.exp(slope * x) - math.exp(0.2 * x)) for x in points]
    return sum(w * e for w, e in zip(weight, error, strict=True)) / sum(weight)


def test_errors_of_100_and_more_are_counted_apart(tmp_path):
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    exact = torch.tensor([0.5, 4.0, 400.0, float("nan")])
    tensors = (x, torch.tensor([0.0, 1.0, 1.0, 0.0]), exact)
    batches = Loader(tensors, batch_size=3, order="sequential")
    task = make_task(nn.Identity, parametrization="square")
    task.network.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    result = run_test(task, batches, tmp_path)
    assert result["test/ratio_error"] == pytest.approx(0.25)  # 0.5 and 0
    assert result["test/ratio_dropped"] == pytest.approx(0.5)
    assert "test/weighted_error" not in result


def test_batches_without_a_known_ratio_have_a_loss_alone(tmp_path):
    x, y, _ = small().read("test")
    batches = Loader((x, y), batch_size=20, order="sequential")
    result = run_test(make_task(), batches, tmp_path)
    assert list(result) == ["test/loss"]
    assert not list(tmp_path.iterdir())


def test_dropout_is_off_in_evaluations_and_on_in_training():
    task = make_task()
    batch = small().read("test")
    assert task.loss(batch) != task.loss(batch)
    task.eval()
    assert task.loss(batch) == task.loss(batch)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (partial(MLP, 2, [4]), "does not take Gaussians's samples of 1 numbers"),
        (
            partial(MLP, 1, [4], outputs=3),
            r"shape \(3,\).*network.outputs to 1",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(build, named, tmp_path):
    with pytest.raises(UserError, match=named):
        trainer(tmp_path).fit(make_task(build), small())


def test_predictions_are_ratios(tmp_path):
    data = small()
    rows = trainer(tmp_path).predict(make_task(Slope), data)
    assert torch.allclose(torch.cat(rows), data.read("test")[2], rtol=1e-6)


# -- training ----------------------------------------------------------------------


class Losses(pl.Callback):
    """Remembers loss and size of every batch, and the logged mean of every epoch."""

    def __init__(self):
        self.batches, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((outputs["loss"].item(), len(batch[0])))

    def on_train_end(self, trainer, pl_module):
        self.logged.append(trainer.callback_metrics["train/epoch_loss"].item())


def test_the_loss_of_an_epoch_is_the_mean_over_its_samples(tmp_path):
    seen = Losses()
    settings = {"log_every_n_steps": 1000, "max_epochs": 2, "callbacks": seen}
    trainer(tmp_path, **settings).fit(make_task(), small(train_size=56))
    assert [size for _, size in seen.batches] == 2 * [16, 16, 16, 8]
    second = [loss * size for loss, size in seen.batches[4:]]
    assert seen.logged == pytest.approx([sum(second) / 56], rel=1e-5)


def test_accumulated_epochs_have_the_mean_loss_of_their_samples(tmp_path):
    means = []
    for accumulate in (1, 2):
        task = make_task(Slope, partial(SGD, lr=0.0))
        runner = trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=1)
        runner.fit(task, small(train_size=56))
        means.append(runner.callback_metrics["train/epoch_loss"].item())
    data = small(train_size=56)
    expected = reference.mean_loss(
        "mlc",
        "exponential",
        (0.2 * data.read("train")[0][:, 0]).tolist(),
        data.read("train")[1].int().tolist(),
    )
    assert means == pytest.approx([expected, expected], abs=1e-6)


def test_training_stops_when_its_own_loss_does_not_fall(tmp_path):
    stop = EarlyStopping("train/epoch_loss", patience=3, check_on_train_epoch_end=True)
    runner = trainer(tmp_path, callbacks=stop, max_epochs=50)
    runner.fit(make_task(Slope, partial(SGD, lr=0.0)), small(order="sequential"))
    assert runner.current_epoch == 4  # the first is the best, three are not better


def test_a_run_resumed_within_an_epoch_has_the_same_epoch_loss(tmp_path):
    def fit(ckpt_path=None):
        files = Checkpoints(str(tmp_path), every_n_steps=6)  # of 4 steps in an epoch
        task = make_task(optimizer=partial(ECDSep, lr=0.01))
        settings = {"callbacks": files, "plugins": WholeFiles(), "max_epochs": 2}
        runner = trainer(tmp_path, **settings)
        if ckpt_path is None:
            copy_at(files, 6, tmp_path / "middle.ckpt")
        runner.fit(task, small(), ckpt_path=ckpt_path)
        return task, runner.callback_metrics["train/epoch_loss"]

    torch.manual_seed(0)
    whole, loss = fit()
    resumed, again = fit(tmp_path / "middle.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(loss, again)


def copy_at(files, step, target):
    """Keep a copy of the checkpoint of one step."""
    save = files._save

    def saving(trainer, name):
        save(trainer, name)
        if trainer.global_step == step:
            target.write_bytes((target.parent / name).read_bytes())

    files._save = saving


def test_a_short_fit_comes_close_to_the_ratio(tmp_path):
    torch.manual_seed(1)
    task = make_task(partial(MLP, 1, [8]), partial(torch.optim.Adam, lr=0.01))
    data = Gaussians(mean_1=0.3, mean_0=-0.3, train_size=4000, batch_size=500)
    before = run_test(task, data, tmp_path)["test/weighted_error"]
    trainer(tmp_path, max_epochs=15, limit_val_batches=0).fit(task, data)
    after = run_test(task, data, tmp_path)["test/weighted_error"]
    assert after < 0.1 < 0.3 < before


def test_inner_layers_have_a_learning_rate_of_their_own():
    build = partial(MLP, 1, [64, 128, 64], activation="relu", dropout=0.05)
    task = make_task(build, groups={"network.[36].*": {"lr": 0.01}})
    outer, inner = task.configure_optimizers().param_groups
    assert (outer["lr"], inner["lr"]) == (0.1, 0.01)
    sizes = [sum(p.numel() for p in group["params"]) for group in (outer, inner)]
    assert sizes == [64 + 64 + 64 + 1, 64 * 128 + 128 + 128 * 64 + 64]


# -- ensembles ---------------------------------------------------------------------


def members(folder, slopes=(0.1, 0.4), **settings):
    """Write one checkpoint for every slope; return the pattern of their names."""
    for number, slope in enumerate(slopes):
        task = make_task(partial(Slope, slope), partial(SGD, lr=0.0), **settings)
        runner = trainer(folder, max_steps=1)
        runner.fit(task, small())
        runner.save_checkpoint(folder / f"version_{number}.ckpt")
    return str(folder / "version_*.ckpt")


def test_an_ensemble_averages_the_ratios_of_its_members(tmp_path):
    data, pattern = small(), members(tmp_path)
    task = make_task(Slope, ensemble=pattern)
    rows = torch.cat(trainer(tmp_path).predict(task, data))
    x = data.read("test")[0][:, 0]
    mean = (torch.exp(0.1 * x) + torch.exp(0.4 * x)) / 2
    assert torch.allclose(rows, mean, rtol=1e-6)

    found = run_test(make_task(Slope, ensemble=pattern), data, tmp_path)
    error = (mean - torch.exp(0.2 * x)).abs().mean().item()
    assert found["test/ratio_error"] == pytest.approx(error, rel=1e-5)
    errors = [weighted_error(0.1), weighted_error(0.4)]
    assert found["test/weighted_error"] < sum(errors) / 2
    near = partial(pytest.approx, rel=1e-3)
    assert found["test/weighted_error_members"] == near(sum(errors) / 2)
    spread = (errors[1] - errors[0]) / 2**0.5
    assert found["test/weighted_error_spread"] == near(spread)
    y = data.read("test")[1].int().tolist()
    losses = [
        reference.mean_loss("mlc", "exponential", (a * x).tolist(), y)
        for a in (0.1, 0.4)
    ]
    assert found["test/loss"] == pytest.approx(sum(losses) / 2, abs=1e-6)


def test_an_ensemble_is_refused_where_it_cannot_work(tmp_path):
    pattern, data = members(tmp_path), small()
    with pytest.raises(UserError, match="train its members without it"):
        trainer(tmp_path).fit(make_task(Slope, ensemble=pattern), data)
    with pytest.raises(UserError, match="no file matches nowhere"):
        run_test(make_task(Slope, ensemble="nowhere*.ckpt"), data, tmp_path)
    with pytest.raises(UserError, match="version_0.ckpt has the parametrization exp"):
        other = make_task(Slope, ensemble=pattern, parametrization="square")
        run_test(other, data, tmp_path)
    with pytest.raises(UserError, match="of another network than model.network"):
        run_test(make_task(ensemble=pattern), data, tmp_path)
    with pytest.raises(UserError, match="either model.ensemble or ckpt_path"):
        path = str(tmp_path / "version_0.ckpt")
        trainer(tmp_path).test(make_task(Slope, ensemble=pattern), data, path)


# -- figures -----------------------------------------------------------------------


def test_a_test_draws_the_ratio_in_its_folder(tmp_path):
    run_test(make_task(), small(), tmp_path)
    assert (tmp_path / "ratio.png").stat().st_size > 5000
    folder = tmp_path / "fast"
    run_test(make_task(), small(), folder, fast_dev_run=True)
    assert not folder.exists()


def test_a_figure_shows_curves_where_there_are_some():
    exact, found = torch.tensor([0.5, 2.0, 90.0]), torch.tensor([0.6, 0.0, 80.0])
    figure = ratios(exact, found)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert len(axes.collections[0].get_offsets()) == 2  # log 0 is left out
    x = torch.linspace(-4, 4, 9)
    figure = ratios(exact, found, [x, x.exp(), torch.stack([x.exp(), x, x])])
    assert len(figure.axes) == 2
    assert len(figure.axes[0].lines) == 3 + 2
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["members", "estimated", "exact"]
