"""Least squares with any network; layers in the neural tangent parametrisation."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from datamodules import Digits, SmallImages, SyntheticPowerLaw
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import HeavyBall
from lightning_ecd.theory import layer_kernel, shallow_kernel
from modules import NTKConv2d, NTKLinear, Regression, ShallowNet, TorchvisionNet

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def make(params):
    return HeavyBall(params, lr=0.1, momentum=-0.2)


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**(quiet | settings))


def test_the_loss_is_half_the_mean_square():
    task = Regression(lambda: nn.Linear(2, 1, bias=False), make)
    with torch.no_grad():
        task.network.weight.copy_(torch.tensor([[1.0, 2.0]]))
    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 5.0])
    assert task.loss((x, y)).item() == pytest.approx((1 + 9) / 4)


def test_metrics_are_in_the_targets_own_units():
    data = Digits(targets="numbers", scale="global", val_size=0)
    task = Regression(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), make)
    (found,) = trainer().test(task, data, verbose=False)
    images, labels = data.test_dataloader().tensors
    f = task.network(data._floats()(images))[:, 0].detach()
    mean, std = data.target_moments
    numbers = data.whole("test")[1]
    error = (f * std + mean - numbers).square().mean().sqrt()
    assert found["test/rmse"] == pytest.approx(error.item(), rel=1e-4)
    half = (f - labels).square().mean() / 2
    assert found["test/loss"] == pytest.approx(half.item(), rel=1e-4)
    right = ((f * std + mean).round() == numbers).float().mean()
    assert found["test/accuracy"] == pytest.approx(right.item())
    predicted = torch.cat(trainer().predict(task, data))
    torch.testing.assert_close(predicted, f * std + mean, rtol=1e-4, atol=1e-4)


def test_numbers_of_classes_have_an_accuracy_whatever_holds_them():
    data = SmallImages(samples=1000, val_size=200)
    task = Regression(lambda: nn.Linear(64, 1), make)
    (found,) = trainer().validate(task, data, verbose=False)
    x, y = (tensor[data.split(1797)[1]] for tensor in data.val_dataloader().tensors)
    mean, std = data.target_moments
    numbers = (y * std + mean).round()
    assert numbers.unique().tolist() == list(range(10))
    right = ((task(x) * std + mean).round() == numbers).float().mean()
    assert found["val/accuracy"] == pytest.approx(right.item())


def test_tables_have_no_accuracy():
    data = SyntheticPowerLaw(size=20, batch_size=5)
    task = Regression(lambda: nn.Linear(20, 1), make)
    fit = trainer(max_epochs=2, num_sanity_val_steps=0, limit_val_batches=0)
    fit.fit(task, data)
    assert not any("accuracy" in name for name in fit.callback_metrics)


def test_a_network_of_many_outputs_is_refused():
    task = Regression(lambda: nn.Linear(2, 3), make)
    with pytest.raises(UserError, match="network.outputs"):
        task.loss((torch.zeros(4, 2), torch.zeros(4)))


def test_layers_scale_their_weights_on_the_way():
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    layer = NTKLinear(8, 3)
    expected = x @ layer.weight.T / 8**0.5 + layer.bias
    torch.testing.assert_close(layer(x), expected)
    conv = NTKConv2d(2, 3, (3, 2), stride=2, padding=1)
    images = torch.randn(4, 2, 6, 6)
    plain = nn.functional.conv2d(images, conv.weight / 12**0.5, conv.bias, 2, 1)
    torch.testing.assert_close(conv(images), plain)


@pytest.mark.parametrize("kind", [NTKLinear, NTKConv2d])
def test_entries_are_drawn_with_their_variances(kind):
    torch.manual_seed(0)
    size = (300, 300) if kind is NTKLinear else (100, 100, 3)
    layer = kind(*size, sigma_w=2.0, sigma_b=0.5)
    assert layer.weight.std().item() == pytest.approx(2, rel=0.02)
    assert layer.bias.std().item() == pytest.approx(0.5, rel=0.2)
    assert kind(*size, bias=False).bias is None
    for bad in ({"sigma_w": 0.0}, {"sigma_b": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            kind(*size, **bad)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_shallow_net_follows_its_formula(activation):
    torch.manual_seed(0)
    network = ShallowNet(6, width=9, activation=activation).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    W1, b1, W2 = network.first.weight, network.first.bias, network.last.weight
    u = x.flatten(1) @ W1.T / 6**0.5 + b1
    expected = getattr(torch, activation)(u) @ W2.T / 3
    torch.testing.assert_close(network(x), expected)
    K = shallow_kernel(x, W1, b1, W2, getattr(torch, activation))
    torch.testing.assert_close(layer_kernel(network, x), K)


def test_bad_nets_are_refused():
    for name in ("nothing", "cross_entropy"):
        with pytest.raises(ValueError, match="activation must be one of gelu"):
            ShallowNet(3, activation=name)
    with pytest.raises(ValueError, match="width"):
        ShallowNet(3, width=0)
    with pytest.raises(ValueError, match="name"):
        TorchvisionNet("resnet19")


def test_nets_of_torchvision_take_grey_images():
    network = TorchvisionNet("resnet18").eval()
    with torch.no_grad():
        assert network(torch.randn(2, 1, 32, 32)).shape == (2, 1)
