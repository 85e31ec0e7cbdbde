"""Layout of memory, precision and determinism of classifiers."""

from functools import partial

import pytest
import torch
from torch.optim import SGD

from datamodules import Digits
from lightning_ecd.optimizers import BBI
from modules import Classifier, ResNet
from tests.modules.toys import trainer

bbi = partial(BBI, lr=0.05, bounce_every=4, fixed_bounces=2)


def task(optimizer=bbi, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier(
            partial(ResNet, [1, 1], width=8, channels=1), optimizer, **settings
        )


def fitted(folder, make=task, **settings):
    """Return a task after ten steps on the digits."""
    module = make()
    options = {"max_epochs": 1, "limit_train_batches": 10, "limit_val_batches": 1}
    fitting = trainer(folder, **(options | settings))
    fitting.fit(module, datamodule=Digits(batch_size=16, eval_batch_size=50))
    return module


def weights(module):
    """All parameters as one vector, whatever their order in memory."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.fixture
def determinism():
    """Lightning asks torch for deterministic algorithms and never takes it back."""
    yield
    torch.use_deterministic_algorithms(False)


def conv_layouts(module):
    last = torch.channels_last
    kernels = [p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1]
    kernels = [p for p in kernels if p.shape[2] > 1]
    assert kernels
    return {p.is_contiguous(memory_format=last) for p in kernels}


@pytest.mark.parametrize("optimizer", [bbi, partial(SGD, lr=0.05)])
def test_channels_last_survives_training(tmp_path, optimizer):
    module = fitted(tmp_path, partial(task, optimizer, channels_last=True))
    assert conv_layouts(module) == {True}
    assert conv_layouts(task(optimizer)) == {False}


def test_the_network_sees_images_with_the_channels_innermost():
    module = Classifier(partial(ResNet, [1], width=4), bbi, channels_last=True)
    seen = []
    module.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.randn(2, 3, 8, 8)
    module(images)
    assert torch.equal(seen[0], images) and not seen[0].is_contiguous()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_layouts_agree_to_rounding(tmp_path):
    # without bounces, whose draws follow the order in memory
    optimizer = partial(BBI, lr=0.05, bounce_every=1000)
    runs = [
        fitted(tmp_path, partial(task, optimizer, channels_last=last), precision=64)
        for last in (False, True)
    ]
    start = weights(task(optimizer)).double()
    one, other = map(weights, runs)
    assert (one - start).norm() > 0.1
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_fits_either_layout(tmp_path):
    state = fitted(tmp_path, partial(task, channels_last=True)).state_dict()
    other = task()
    other.load_state_dict(state)
    images = torch.randn(4, 1, 8, 8)
    first = task(channels_last=True)
    first.load_state_dict(state)
    torch.testing.assert_close(first.eval()(images), other.eval()(images))


def test_bbi_learns_in_bf16(tmp_path):
    seen = []

    class Watched(Classifier):
        def loss(self, batch):
            seen.append(self(batch[0]).dtype)
            return super().loss(batch)

    optimizer = partial(BBI, lr=0.2, extra_energy=1.0)
    make = partial(Watched, partial(ResNet, [1, 1], width=8, channels=1), optimizer)
    module = fitted(
        tmp_path, make, precision="bf16-mixed", limit_train_batches=78, max_epochs=2
    )
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    images, labels = Digits().read("test")
    with torch.no_grad():
        right = module.eval()(images / 16).argmax(1) == labels
    assert right.float().mean() > 0.5  # guessing: 0.1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_deterministic_runs_agree_to_the_bit(tmp_path, determinism, precision):
    runs = []
    for _ in range(2):
        fit = partial(fitted, tmp_path, deterministic=True, precision=precision)
        runs.append(weights(fit()))
        assert torch.are_deterministic_algorithms_enabled()
        torch.rand(3)  # the use of the global generator elsewhere
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], weights(task()))
