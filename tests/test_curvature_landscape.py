"""What the loss does around a point, against closed forms of a quadratic."""

import pytest
import torch
from torch import nn

from lightning_ecd.curvature import Loss
from lightning_ecd.curvature.landscape import (
    entropy_probe,
    filter_normalized,
    gradient_correlation,
    line,
    local_energy,
    plane,
    sharpness,
)


class Bowl(nn.Module):
    """½ Σ h x², at x = (1, -2, 3, ...) in a matrix and a bias."""

    def __init__(self, h):
        super().__init__()
        self.h = h
        start = torch.arange(1, len(h) + 1).double()
        start[1::2] *= -1
        self.weight = nn.Parameter(start[:4].reshape(2, 2).clone())
        self.bias = nn.Parameter(start[4:].clone())

    def loss(self, batch):
        x = torch.cat([self.weight.reshape(-1), self.bias])
        return 0.5 * (self.h * x * x).sum()


H = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25, 1.5]).double()


@pytest.fixture
def bowl():
    return Loss(Bowl(H), [torch.zeros(1)])


def test_local_energy_of_a_quadratic(bowl):
    x = bowl.x
    value, error = local_energy(bowl, std=0.1, draws=400)
    assert value == pytest.approx(0.5 * 0.01 * (H * x * x).sum().item(), abs=4 * error)
    repeats = [local_energy(bowl, 0.1, 20, seed=s) for s in range(100)]
    values, errors = torch.tensor(repeats).double().T
    scatter = values.std().item()
    assert errors.square().mean().sqrt().item() == pytest.approx(scatter, rel=0.25)
    assert torch.equal(bowl.x, x)


def test_sharpness_of_a_quadratic(bowl):
    x = bowl.x
    g = H * x
    u = g / g.norm()
    expected = 0.05 * g.norm() + 0.5 * 0.05**2 * (H * u * u).sum()
    assert sharpness(bowl, 0.05) == pytest.approx(expected.item())
    bowl.move(torch.zeros(6).double())
    assert sharpness(bowl) == 0  # no gradient, no direction


def test_filters_of_a_direction_have_the_norms_of_the_weights(bowl):
    d = filter_normalized(bowl, seed=1)
    w = bowl.x[:4].view(2, 2)
    torch.testing.assert_close(d[:4].view(2, 2).norm(dim=1), w.norm(dim=1))
    assert not d[4:].any()
    assert torch.equal(d, filter_normalized(bowl, seed=1))
    assert not torch.equal(d, filter_normalized(bowl, seed=1, number=1))


def test_slices_of_a_quadratic(bowl):
    x = bowl.x
    a, b = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double()
    places = torch.linspace(-1, 1, 5).double()

    def f(point):
        return (0.5 * (H * point * point).sum()).item()

    found = line(bowl, a, places)
    assert found.tolist() == pytest.approx([f(x + s * a) for s in places])
    found = plane(bowl, a, b, places)
    assert found[3, 1].item() == pytest.approx(f(x + places[1] * a + places[3] * b))
    to_zero = line(bowl, -x, torch.tensor([0.0, 1.0]))
    assert to_zero.tolist() == pytest.approx([f(x), 0])
    assert torch.equal(bowl.x, x)


def test_probe_without_noise_is_gradient_descent(bowl):
    x = bowl.x
    probe = entropy_probe(bowl, 25, lr=0.1, noise=0.0, weight_decay=0.2, every=10)
    assert probe.steps == [0, 10, 20, 25]
    for step, distance, value in zip(
        probe.steps, probe.distances, probe.losses, strict=True
    ):
        y = (1 - 0.1 * (H + 0.2)) ** step * x
        assert distance == pytest.approx((y - x).norm().item())
        assert value == pytest.approx(0.5 * (H * y * y).sum().item())
    assert torch.equal(bowl.x, x)


def test_noise_of_the_probe_reaches_its_stationary_variance():
    """x <- (1 - lr h) x - lr^½ noise z: the variance is noise²/(h (2 - lr h))."""
    h = torch.full((2000,), 0.5).double()
    flat = Loss(Bowl(h), [torch.zeros(1)])
    flat.move(torch.zeros(2000).double())
    probe = entropy_probe(flat, 100, lr=0.5, noise=0.1, weight_decay=0, every=100)
    variance = 0.01 / (0.5 * (2 - 0.25))
    assert probe.distances[-1] ** 2 / 2000 == pytest.approx(variance, rel=0.15)
    again = entropy_probe(flat, 100, lr=0.5, noise=0.1, weight_decay=0, every=100)
    assert again == probe


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: local_energy(f, 0.0), "std must be above 0, got 0"),
        (lambda f: local_energy(f, 0.1, 0), "draws must be at least 1, got 0"),
        (lambda f: sharpness(f, -1.0), "rho must be above 0, got -1"),
        (lambda f: entropy_probe(f, lr=0.0), "lr must be above 0, got 0"),
        (lambda f: entropy_probe(f, noise=-1.0), "noise must be at least 0, got -1"),
        (lambda f: entropy_probe(f, every=0), "every must be at least 1, got 0"),
    ],
)
def test_bad_values_are_named(call, message, bowl):
    with pytest.raises(ValueError, match=message):
        call(bowl)


class Pulls(nn.Module):
    """The mean of x·batch: the gradient of a batch is its mean row."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss(self, batch):
        return (batch @ self.weight).mean()


def test_gradients_of_consecutive_batches_are_compared():
    rows = torch.tensor([[1.0, 0.0], [2.0, 2.0], [0.0, -1.0]]).double()
    value, error = gradient_correlation(Loss(Pulls(), [row[None] for row in rows]))
    half = 0.5**0.5  # cosines 45° and 135°
    assert value == pytest.approx(0, abs=1e-12)
    assert error == pytest.approx(half)
    with pytest.raises(ValueError, match="^batches must be at least 2"):
        gradient_correlation(Loss(Pulls(), [rows]))
