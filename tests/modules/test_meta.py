"""The training of update rules: as published, resumed, on two processes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from datamodules import ImageStreams
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import NES, SAM, EntropySGD, HeavyBall, Learned
from lightning_ecd.rules import HNNRule, LSTMRule, read_rule
from lightning_ecd.unrolling import FlatProblem, truncated_gradient, unroll
from modules import Classification, MetaTask, Quadratic
from tests.modules.meta_tasks import CASES, data, fit, rule_of, task
from tests.modules.toys import trainer, weights
from tests.reference import meta_training as slow

ROOT = Path(__file__).parents[2]
MLP = partial(nn.Sequential, nn.Linear(3, 2))


@pytest.mark.parametrize("name", ["hnn", "lstm"])
def test_reference_mode_trains_as_the_released_code(name, tmp_path):
    """One problem at a time, W - 1 updates count, ends of runs are dropped."""
    window, runs = 4, 3
    streams = data(runs=1, window=window, runs_per_epoch=runs, last="drop")
    # Adam's epsilon belongs to the sum over the window, ours is the mean
    adam = partial(torch.optim.Adam, lr=0.01, eps=1e-8 / window)
    module = task(rule=name, optimizer=adam, score_last=False).double()
    start = {key: w.detach().clone() for key, w in module.rule.named_parameters()}

    norm = {"norm": True} if name == "hnn" else {}
    step = partial(slow.hnn_step if name == "hnn" else slow.lstm_step, **norm)
    zero = torch.zeros(4).double()
    state = zero if name == "hnn" else tuple(torch.zeros(4, 4).double() for _ in "abcd")

    def loss(theta, batch):
        return (batch[0] @ theta - batch[1]).square().sum()

    courses = []
    for part in streams.train_dataloader():
        W, y = (tensor[:-1, 0].double() for tensor in part.batch)
        pairs = list(zip(W, y, strict=True))
        if part.step[0, 0] == 0:
            courses.append((zero, state, loss, []))
        courses[-1][3].extend(pairs)
    assert [len(course[3]) for course in courses] == [8] * runs
    expected = slow.trained(step, start, courses, window, 0.1, 0.01)

    fit(tmp_path, module, streams, max_epochs=1)
    for key, w in module.rule.named_parameters():
        assert (w - expected[key]).abs().max() < 1e-9, key
        moved = (start[key] - expected[key]).abs().max() > 1e-4
        assert moved or key == "gde.L.bias"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_resumes_to_the_bit_also_within_a_run(case, steps, tmp_path):
    straight = task(case)
    fit(tmp_path, straight, max_epochs=3)
    keep = Checkpoints(folder=str(tmp_path), every_n_steps=1)
    first = task(case)
    fit(tmp_path, first, max_steps=steps, callbacks=keep)
    assert not torch.equal(weights(first), weights(straight))
    resumed = task(case)
    runner = fit_from(tmp_path, resumed, max_epochs=3)
    assert runner.global_step == 18
    assert torch.equal(weights(resumed), weights(straight))


def fit_from(folder, module, **settings):
    runner = trainer(
        folder,
        precision="64-true",
        log_every_n_steps=1,
        plugins=[WholeFiles()],
        callbacks=Checkpoints(folder=str(folder), every_n_steps=0),
        **settings,
    )
    runner.fit(module, datamodule=data(), ckpt_path=str(folder / "last.ckpt"))
    return runner


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.modules.meta_tasks", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_on_the_union_of_the_runs(case, ranks, tmp_path):
    first, second = (torch.load(ranks / f"{case}-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    alone = task(case)
    fit(tmp_path, alone)
    assert (weights(alone) - first).abs().max() < 1e-10


def test_validation_unrolls_all_runs_and_leaves_training_alone(tmp_path):
    module, unwatched = task(), task()
    runner = fit(tmp_path, module, max_epochs=2)
    fit(tmp_path, unwatched, max_epochs=2, limit_val_batches=0)
    assert torch.equal(weights(module), weights(unwatched))
    problem, runs, losses = FlatProblem(Quadratic(4)), None, []
    for part in data().val_dataloader():
        part = part._replace(batch=tuple(tensor.double() for tensor in part.batch))
        steps = list(unroll(module.rule, problem, part, runs, 0.1, module.like))
        losses += [found for found, _ in steps]
        runs = steps[-1][1]
    table = torch.stack(losses).detach()
    assert table.shape == (10, 6)
    metrics = runner.callback_metrics
    assert metrics["val/loss"].item() == pytest.approx(table.mean().item(), rel=1e-6)
    assert metrics["val/final"].item() == pytest.approx(
        table[-1].mean().item(), rel=1e-6
    )
    assert metrics["val/final_50"].item() == pytest.approx(
        sorted(table[-1].tolist())[2], rel=1e-6
    )
    assert metrics["val/diverged"].item() == 0


@pytest.mark.parametrize("make", [SAM, partial(EntropySGD, inner_steps=3)])
def test_runs_go_on_once_per_step_however_often_it_evaluates(make, tmp_path):
    """Two evaluations at one place differ only in weights: the runs stay put."""
    seen = []

    class Watched(MetaTask):
        def _estimate(self, window):
            runs = self._here.runs
            before = None if runs is None else runs.x.sum().item()
            seen.append((window.step[0, 0].item(), before))
            return super()._estimate(window)

    module = Watched(
        partial(rule_of, "lstm"), partial(Quadratic, 4), partial(make, lr=0.01), lr=0.1
    )
    fit(tmp_path, module, max_epochs=1)
    times = len(seen) // 6
    assert times > 1 and len(seen) == 6 * times
    for number in range(6):
        assert len(set(seen[number * times : (number + 1) * times])) == 1
    assert len(set(seen)) > 3


def test_accumulation_takes_the_mean_over_successive_windows(tmp_path):
    """The runs move from window to window; the weights after every second one."""
    module = task(optimizer=partial(HeavyBall, lr=0.1, momentum=0.0))
    rule = rule_of("lstm").double()
    runner = fit(tmp_path, module, max_epochs=1, accumulate_grad_batches=2)
    assert runner.global_step == 3
    problem, runs, like = FlatProblem(Quadratic(4)), None, torch.zeros(1).double()
    parts = [
        part._replace(batch=tuple(tensor.double() for tensor in part.batch))
        for part in data().train_dataloader()
    ]
    for first in range(0, 6, 2):
        total = 0.0
        for part in parts[first : first + 2]:
            found = truncated_gradient(rule, problem, part, runs, 0.1, like)
            runs = found.after
            total = total + torch.cat([g.flatten() for g in found.gradients]) / 2
        with torch.no_grad():
            moved = nn.utils.parameters_to_vector(rule.parameters()) - 0.1 * total
            nn.utils.vector_to_parameters(moved, rule.parameters())
    assert torch.allclose(weights(module), weights(rule), rtol=1e-9, atol=1e-12)


def test_a_checkpoint_is_a_rule_for_learned(tmp_path):
    module = task()
    keep = Checkpoints(folder=str(tmp_path), monitor="val/loss", mode="min")
    fit(tmp_path, module, callbacks=keep, plugins=[WholeFiles()])
    for name in ("last", "best"):
        file = str(tmp_path / f"{name}.ckpt")
        optimizer = Learned([nn.Parameter(torch.zeros(3))], checkpoint=file)
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert isinstance(optimizer.rule, LSTMRule)
    rule = read_rule(tmp_path / "last.ckpt").rule
    for a, b in zip(rule.parameters(), module.rule.parameters(), strict=True):
        assert torch.equal(a, b.float())


def test_rescaled_runs_descend_on_the_same_losses(tmp_path):
    """f(s w) with w0 = theta0 / s begins at the loss of f(theta0)."""
    module = task(rescale="parameter", rescale_by=5.0).double()
    part = next(iter(data().train_dataloader()))
    part = part._replace(batch=tuple(tensor.double() for tensor in part.batch))
    scaled, _, runs = module._estimate(part)
    plain, _, _ = task().double()._estimate(part)
    assert torch.allclose(scaled[0], plain[0]) and not torch.allclose(scaled, plain)
    assert runs.scale.shape == (4, 4)
    assert 0.2 <= runs.scale.min() < runs.scale.max() <= 5.0


@pytest.mark.parametrize(
    ("kind", "distinct"), [("global", 1), ("tensor", 2), ("parameter", 8)]
)
def test_scales_are_drawn_for_all_for_tensors_or_for_parameters(kind, distinct):
    rules = partial(HNNRule), partial(Classification, MLP)
    module = MetaTask(*rules, partial(torch.optim.Adam), rescale=kind)
    draws = torch.stack([module.scales(seed) for seed in range(400)])
    assert len(draws[0].unique()) == distinct
    assert draws.log10().abs().max() <= 3
    assert draws[:, 0].log10().mean().abs() < 0.3
    assert torch.equal(module.scales(7), module.scales(7))


def test_classification_is_the_cross_entropy_of_a_fresh_network():
    problem = Classification(MLP)
    x, labels = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    params = problem.initial(1)
    expected = nn.functional.cross_entropy(
        x @ params["0.weight"].T + params["0.bias"], labels
    )
    assert problem.loss(params, (x, labels)).item() == pytest.approx(expected.item())
    drawn_from = Classification(partial(nn.Linear, 3, 2))
    state = torch.get_rng_state()
    drawn = [drawn_from.initial(seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0]["weight"], drawn[1]["weight"])
    assert not torch.equal(drawn[0]["weight"], drawn[2]["weight"])
    assert drawn[0]["weight"].abs().max() <= 3**-0.5


def test_networks_with_running_statistics_are_refused():
    with pytest.raises(ValueError, match="must not have buffers, which BatchNorm1d"):
        Classification(partial(nn.BatchNorm1d, 3))


def test_a_checkpoint_of_other_processes_is_refused(tmp_path):
    keep = Checkpoints(folder=str(tmp_path))
    fit(tmp_path, task(), callbacks=keep, plugins=[WholeFiles()])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["runs"] = checkpoint["runs"] * 2
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="is of 2 processes, this run has 1"):
        fit_from(tmp_path, task(), max_epochs=3)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": 0.0}, "lr"),
        ({"std": 0.0}, "std"),
        ({"rescale_by": 0.5}, "rescale_by"),
        ({"estimator": "bptt"}, "estimator"),
        ({"rescale": "all"}, "rescale"),
    ],
)
def test_bad_arguments_are_named(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        task(**settings)


def test_an_optimizer_with_points_of_its_own_is_refused(tmp_path):
    with pytest.raises(UserError, match="NES evaluates .* model.estimator=es"):
        fit(tmp_path, task(optimizer=partial(NES, lr=0.1)))


def test_windows_that_do_not_follow_are_refused(tmp_path):
    """As when an epoch of staggered runs is cut short."""
    staggered = data(stagger=True, steps=9, window=4, runs_per_epoch=6)
    with pytest.raises(UserError, match="limit_train_batches"):
        fit(tmp_path, task("pes"), staggered, max_epochs=4, limit_train_batches=4)


def test_networks_with_dropout_are_trained_on(tmp_path):
    network = partial(nn.Sequential, nn.Linear(64, 10), nn.Dropout(0.5))
    parts = partial(rule_of, "hnn"), partial(Classification, network)
    module = MetaTask(*parts, partial(torch.optim.Adam, lr=0.01), lr=0.01)
    settings = {"steps": 4, "window": 2, "runs_per_epoch": 1, "val_runs": 2}
    runner = trainer(tmp_path, max_epochs=1)
    streams = ImageStreams("Digits", batch_size=16, **settings)
    runner.fit(module, datamodule=streams)
    assert runner.callback_metrics["val/loss"].isfinite()


def test_runs_that_do_not_divide_among_processes_are_refused(monkeypatch):
    streams = data(runs=3, val_runs=5, eval_runs=3)
    monkeypatch.setattr(type(streams), "world_size", 2)
    with pytest.raises(UserError, match="data.runs must be a multiple"):
        streams.train_dataloader()
    assert len(streams.val_dataloader()) > 0
    monkeypatch.setattr(type(streams), "world_size", 3)
    with pytest.raises(UserError, match="data.val_runs must be at least"):
        streams.val_dataloader()
