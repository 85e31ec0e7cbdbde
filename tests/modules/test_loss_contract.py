"""The optimizer gets the mean loss of exactly the samples of its gradient."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch.nn.functional import mse_loss

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import BBI, REGISTRY, HeavyBall
from tests.modules.toys import (
    SAMPLES,
    Regression,
    Twice,
    loader,
    network,
    samples,
    trainer,
    weights,
)

ACCUMULATING = [name for name, e in REGISTRY.items() if e.traits.accumulation]


class Spy(HeavyBall):
    """Stands still and remembers the losses and gradients it was given."""

    def update(self, loss, evaluate):
        self.losses = [*getattr(self, "losses", []), loss]
        self.gradients = [*getattr(self, "gradients", []), self.g.clone()]


def fitted(folder, make, batch_size, double=False, **settings):
    task = Regression(make)
    dtype = torch.float64 if double else torch.float32
    precision = "64-true" if double else "32-true"
    runner = trainer(folder, precision=precision, **settings)
    runner.fit(task, loader(batch_size, dtype))
    return task, runner


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ACCUMULATING)
def test_accumulation_equals_one_batch_of_the_union(name, double, tmp_path):
    make = partial(REGISTRY[name].cls, lr=0.01)
    # 58 samples: the epoch's last group is 4 + 4 + 2, its last batch smaller.
    parts, runner = fitted(tmp_path, make, 4, double, accumulate_grad_batches=4)
    union, other = fitted(tmp_path, make, 16, double)
    assert runner.global_step == other.global_step == 8
    assert (weights(union) - weights(Regression(make)).to(weights(union))).norm() > 1e-3
    worst = (weights(parts) - weights(union)).abs().max().item()
    assert worst < (1e-12 if double else 1e-6)


@pytest.mark.parametrize("every", [1, 1000], ids=["logging", "silent"])
def test_loss_and_gradient_are_the_unions_mean_with_and_without_logging(
    every, tmp_path
):
    make = partial(Spy, lr=0.01)
    task = Regression(make)
    runner = trainer(
        tmp_path,
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=4,
        log_every_n_steps=every,
    )
    runner.fit(task, loader(4, torch.float64, order="sequential"))
    spy = runner.optimizers[0]

    x, y = samples(dtype=torch.float64)
    plain = network().double()
    for k, start in enumerate(range(0, SAMPLES, 16)):
        rows = slice(start, start + 16)
        plain.zero_grad()
        loss = mse_loss(plain(x[rows]).squeeze(-1), y[rows])
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in plain.parameters()])
        assert spy.losses[k] == pytest.approx(loss.item(), abs=1e-12)
        assert torch.allclose(spy.gradients[k], gradient, rtol=0, atol=1e-12)
    assert len(spy.losses) == 4


def test_a_short_group_is_scaled_before_clipping(tmp_path):
    make = partial(torch.optim.SGD, lr=0.1)
    clip = {"gradient_clip_val": 0.05, "max_epochs": 1}
    parts, _ = fitted(tmp_path, make, 4, True, accumulate_grad_batches=4, **clip)
    union, _ = fitted(tmp_path, make, 16, True, **clip)
    assert torch.allclose(weights(parts), weights(union), rtol=0, atol=1e-12)
    free, _ = fitted(tmp_path, make, 16, True, max_epochs=1)
    assert not torch.allclose(weights(free), weights(union), rtol=0, atol=1e-4)


def test_evaluations_are_counted_and_logged(tmp_path):
    task = Regression(Twice)
    runner = trainer(tmp_path, log_every_n_steps=1, max_epochs=1)
    runner.fit(task, loader(5, minibatches=2))
    assert runner.global_step == 6  # five batches of 10 and one of 8
    assert task.evaluations == 12
    assert runner.callback_metrics["train/evaluations"] == 12.0


def test_effective_epochs_are_samples_seen_over_those_of_the_training_set(tmp_path):
    task, runner = Regression(Twice), trainer(tmp_path, log_every_n_steps=1)
    runner.fit(task, loader(5, minibatches=2))  # two epochs
    assert runner.callback_metrics["train/effective_epochs"] == 2.0
    task, runner = Regression(Twice), trainer(tmp_path, log_every_n_steps=1)
    task.minibatches = 1  # both evaluations see the whole batch
    runner.fit(task, loader(5, last="drop"))
    expected = 2 * 2 * 55 / 58
    found = runner.callback_metrics["train/effective_epochs"].item()
    assert found == pytest.approx(expected)


def test_effective_epochs_go_on_in_a_resumed_run(tmp_path):
    task, runner = Regression(Twice), trainer(tmp_path, max_epochs=1)
    runner.fit(task, loader(5, minibatches=2))
    runner.save_checkpoint(tmp_path / "one.ckpt")
    task, runner = Regression(Twice), trainer(tmp_path, log_every_n_steps=1)
    path = str(tmp_path / "one.ckpt")
    runner.fit(task, loader(5, minibatches=2), ckpt_path=path)
    assert runner.callback_metrics["train/effective_epochs"] == 2.0


def test_accumulated_evaluations_count_once_per_step(tmp_path):
    make = partial(HeavyBall, lr=0.01)
    task, runner = fitted(tmp_path, make, 4, accumulate_grad_batches=4, max_epochs=1)
    assert task.evaluations == runner.global_step == 4


def test_logged_loss_is_the_first_evaluations(tmp_path):
    task = Regression(Twice)
    runner = trainer(tmp_path, log_every_n_steps=1, max_steps=1)
    runner.fit(task, loader(5, minibatches=2, order="sequential"))
    x, y = samples()
    expected = mse_loss(network()(x[:5]).squeeze(-1), y[:5]).item()
    assert runner.callback_metrics["train/loss"].item() == pytest.approx(expected)


@pytest.mark.parametrize("minibatches", [None, 2])
def test_each_evaluation_sees_its_own_part_of_the_batch(minibatches, tmp_path):
    task = Regression(Twice, minibatches=minibatches)
    data = loader(5, minibatches=2, order="sequential")
    trainer(tmp_path, max_epochs=1).fit(task, data)
    x = samples()[0][:, 0]
    starts = [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 54]  # 58 = 5 * 10 + 2 * 4
    assert task.seen == pytest.approx([x[i].item() for i in starts], abs=1e-6)


def test_one_minibatch_is_used_again_by_every_evaluation(tmp_path):
    task = Regression(Twice, minibatches=1)
    data = loader(29, order="sequential")
    trainer(tmp_path, max_epochs=1).fit(task, data)
    assert len(task.seen) == 4
    assert task.seen[0] == task.seen[1] != task.seen[2] == task.seen[3]


class Normalized(Regression):
    """With a BatchNorm layer before the network."""

    def __init__(self, optimizer, minibatches=None):
        super().__init__(optimizer, minibatches)
        self.network = torch.nn.Sequential(torch.nn.BatchNorm1d(5), *self.network)


@pytest.mark.parametrize(("minibatches", "moves"), [(1, 1), (2, 2)])
def test_statistics_move_once_per_mini_batch(minibatches, moves, tmp_path):
    """A second look at the same batch moves nothing, and normalises all the same."""
    task = Normalized(Twice, minibatches=minibatches)
    data = loader(5, minibatches=minibatches, order="sequential")
    trainer(tmp_path, max_steps=1).fit(task, data)
    x = samples()[0]
    expected = torch.zeros(5)
    for i in range(moves):
        expected = 0.9 * expected + 0.1 * x[5 * i : 5 * i + 5].mean(0)
    norm = task.network[0]
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == moves
    assert norm.track_running_stats


def test_a_batch_of_fewer_samples_than_parts_is_refused(tmp_path):
    with pytest.raises(UserError, match="a batch of 1 samples cannot be cut into 2"):
        trainer(tmp_path).fit(Regression(Twice), loader(1))


class Data(pl.LightningDataModule):
    def __init__(self, minibatches):
        super().__init__()
        self.minibatches = minibatches

    def train_dataloader(self):
        return loader(4, minibatches=self.minibatches)


def test_a_loader_that_cuts_otherwise_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"data\.minibatches=2"):
        trainer(tmp_path).fit(Regression(Twice), datamodule=Data(3))
    trainer(tmp_path, max_steps=1).fit(Regression(Twice), datamodule=Data(2))


@pytest.mark.parametrize(("make", "wrong"), [(Twice, 3), (BBI, 2)])
def test_minibatches_that_contradict_the_optimizer_are_refused(make, wrong, tmp_path):
    with pytest.raises(
        UserError, match=rf"model\.minibatches={wrong}.*{make.__name__}"
    ):
        trainer(tmp_path).fit(Regression(make, minibatches=wrong), loader(4))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"minibatches": 0}, "minibatches"), ({"scheduler_interval": "x"}, "scheduler_")],
)
def test_bad_arguments_of_a_task_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Regression(BBI, **settings)
