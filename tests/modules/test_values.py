"""Losses and gradients at many points at once."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_ecd.optimizers import ElasticSGD, HeavyBall, Parle
from tests.modules.toys import Regression, loader, samples, trainer, weights

NETWORKS = {
    "dense": lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)),
    "normalized": lambda: nn.Sequential(
        nn.BatchNorm1d(5), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)
    ),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 2), nn.Flatten(), nn.Linear(12, 1)
    ),
}


class Task(Regression):
    """Least squares by any network, in float64."""

    def __init__(self, optimizer, minibatches, network):
        super().__init__(optimizer, minibatches)
        torch.manual_seed(3)
        self.network = network().double()

    def loss(self, batch):
        x, y = batch
        return mse_loss(self.network(x).squeeze(-1), y)


class Asks(HeavyBall):
    """Remembers what it was handed."""

    uses_values = True
    traits = replace(HeavyBall.traits, minibatches="3")

    def update(self, loss, evaluate, value=None):
        draws = torch.Generator().manual_seed(1)
        away = torch.randn(20, len(self.x), generator=draws, dtype=self.x.dtype)
        self.points = self.x + 0.1 * away
        self.value, self.here = value, self.x.clone()
        self.losses, self.gradients = value(self.points, gradients=True)
        self.alone = value(self.points[:7], parts=[2] * 7)
        self.evaluated = self.x.clone()
        self.directions = away
        self.slopes = value.slopes(away, 5)


@pytest.fixture(params=NETWORKS)
def asked(request, tmp_path):
    """A task of three mini-batches after one step, and its optimizer."""
    task = Task(partial(Asks, lr=0.01), 3, NETWORKS[request.param])
    before = {name: b.clone() for name, b in task.named_buffers()}
    data = loader(6, torch.float64, minibatches=3, order="sequential")
    runner = trainer(tmp_path, precision="64-true", max_steps=1)
    runner.fit(task, data)
    return task, runner.optimizers[0], before


def expected(task, optimizer, i, part):
    """Loss and gradient at a point, by autograd."""
    nn.utils.vector_to_parameters(optimizer.points[i], task.parameters())
    x, y = (t[6 * part : 6 * part + 6] for t in samples(dtype=torch.float64))
    task.train()
    loss = task.loss((x, y))
    gradients = torch.autograd.grad(loss, list(task.parameters()))
    return loss.detach(), torch.cat([g.reshape(-1) for g in gradients])


def test_rows_equal_plain_evaluations_on_their_mini_batches(asked):
    task, optimizer, _ = asked
    for i in range(20):
        loss, gradient = expected(task, optimizer, i, i % 3)
        assert optimizer.losses[i].item() == pytest.approx(loss.item(), rel=1e-12)
        torch.testing.assert_close(
            optimizer.gradients[i], gradient, rtol=1e-10, atol=1e-12
        )
    for i in range(7):
        loss, _ = expected(task, optimizer, i, 2)
        assert optimizer.alone[i].item() == pytest.approx(loss.item(), rel=1e-12)


def test_nothing_of_the_task_moves(asked):
    task, optimizer, before = asked
    assert torch.equal(optimizer.here, optimizer.evaluated)
    for name, buffer in task.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert buffer == before[name] + 1  # by the closure
    assert optimizer.value.stateless == ("network.0.running_mean" not in before)


def test_evaluations_and_samples_are_counted(asked):
    task, _, _ = asked
    assert task.evaluations == 1 + 20 + 7 + 20
    assert task.samples == 6 * (1 + 20 + 7 + 20)


class InTurn:
    """Replicas that are evaluated one after the other."""

    uses_values = False


@pytest.mark.parametrize("cls", [Parle, ElasticSGD])
def test_replicas_at_once_are_those_in_turn(cls, tmp_path):
    settings = {"lr": 0.02, "replicas": 3, "weight_decay": 1e-2, "rho": 0.5}
    if cls is Parle:
        settings |= {"inner_steps": 2, "inner_lr": 0.05, "scoping": 0.1}
    runs = []
    for kind in (cls, type("Turns", (InTurn, cls), {})):
        task = Task(partial(kind, **settings), None, NETWORKS["dense"])
        parts = 6 if cls is Parle else 3
        data = loader(4, torch.float64, minibatches=parts)
        trainer(tmp_path, precision="64-true", max_epochs=6).fit(task, data)
        runs.append(task)
    at_once, in_turn = runs
    torch.testing.assert_close(
        weights(at_once), weights(in_turn), rtol=1e-11, atol=1e-12
    )
    assert at_once.evaluations == in_turn.evaluations
    assert at_once.samples == in_turn.samples


def test_replicas_at_once_stop_where_a_loss_is_not_finite(tmp_path):
    class Breaks(Task):
        def loss(self, batch):
            scale = torch.where(batch[0][0, 0] == self.bad, float("nan"), 1.0)
            return super().loss(batch) * scale

    task = Breaks(partial(ElasticSGD, lr=0.02), None, NETWORKS["dense"])
    task.bad = samples(dtype=torch.float64)[0][4, 0]  # of the second replica
    data = loader(4, torch.float64, minibatches=3, order="sequential")
    with pytest.raises(Exception, match="step 0: the loss is nan"):
        trainer(tmp_path, precision="64-true").fit(task, data)
    assert torch.isfinite(weights(task)).all()


def test_slopes_are_products_with_the_gradient_of_the_first_mini_batch(asked):
    task, optimizer, _ = asked
    nn.utils.vector_to_parameters(optimizer.here, task.parameters())
    x, y = (t[:6] for t in samples(dtype=torch.float64))
    task.train()
    gradient = torch.autograd.grad(task.loss((x, y)), list(task.parameters()))
    flat = torch.cat([g.reshape(-1) for g in gradient])
    torch.testing.assert_close(optimizer.slopes, optimizer.directions @ flat)


class Noisy(Task):
    """With dropout."""

    def __init__(self, optimizer, network):
        super().__init__(optimizer, None, network)
        self.drop = nn.Dropout(0.5)

    def loss(self, batch):
        x, y = batch
        return mse_loss(self.network(self.drop(x)).squeeze(-1), y)


class Repeats(HeavyBall):
    """Evaluates one point many times, in two calls, by one seed and by none."""

    uses_values = True

    def update(self, loss, evaluate, value=None):
        points = self.x.expand(20, -1)
        before = torch.get_rng_state()
        self.common = value(points, parts=[0] * 20, draws=7)
        self.again = value(points[:3], parts=[0] * 3, draws=7)
        self.other = value(points[:1], parts=[0], draws=8)
        self.untouched = torch.equal(before, torch.get_rng_state())
        self.apart = value(points, parts=[0] * 20)


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_draws_of_one_seed_are_the_same_at_all_points(kind, tmp_path):
    task = Noisy(partial(Repeats, lr=0.01), NETWORKS[kind])
    runner = trainer(tmp_path, precision="64-true", max_steps=1)
    runner.fit(task, loader(6, torch.float64))
    found = runner.optimizers[0]
    torch.testing.assert_close(found.common, found.common[:1].expand(20))
    torch.testing.assert_close(found.again, found.common[:3])
    assert (found.other - found.common[0]).abs() > 1e-6
    assert found.untouched
    assert len(found.apart.unique()) > 10
