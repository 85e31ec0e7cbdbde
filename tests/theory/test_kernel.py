"""Tangent kernels: closed forms against gradients of single outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ecd.errors import UserError
from lightning_ecd.theory import (
    KernelProduct,
    analytic_kernel,
    jacobian_kernel,
    layer_kernel,
    load_kernel,
    save_kernel,
    shallow_kernel,
)
from lightning_ecd.theory.kernel import require_room
from tests.reference import sgd_theory as reference


class Scaled(nn.Linear):
    """A linear layer whose weight is divided by the root of its inputs."""

    def __init__(self, inputs, outputs, bias=True):
        super().__init__(inputs, outputs, bias)
        self.weight_scale = inputs**-0.5
        for p in self.parameters():
            nn.init.normal_(p)

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.weight_scale, self.bias)


def randn(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64)


def shallow(d, h, activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(Scaled(d, h), activation(), Scaled(h, 1, False)).double()


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 2 * 2, 5),
        nn.Sigmoid(),
        nn.Linear(5, 3),
    ).double()


def exact(network, X, output=0):
    return reference.tangent_kernel(
        lambda x: network(x[None])[0, output], list(network.parameters()), X
    )


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_the_closed_form_is_the_kernel_of_the_shallow_net(name):
    layers = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    network, X = shallow(6, 9, layers[name]), randn(8, 6)
    first, last = network[0], network[2]
    activation = getattr(torch, name, None) or getattr(nn.functional, name)
    weights = (first.weight, first.bias, last.weight)
    K = shallow_kernel(X, *weights, activation)
    np.testing.assert_allclose(K, exact(network, X), rtol=1e-12, atol=1e-13)
    Y = randn(3, 6, seed=1)
    cross = shallow_kernel(X, *weights, activation, X2=Y)
    whole = shallow_kernel(torch.cat([X, Y]), *weights, activation)
    torch.testing.assert_close(cross, whole[:8, 8:])


@pytest.mark.parametrize("kernel", [layer_kernel, jacobian_kernel])
@pytest.mark.parametrize("output", [0, 2])
def test_kernels_of_convolutional_nets_are_exact(kernel, output):
    network, X = convolutional(), randn(7, 2, 6, 6)
    K = kernel(network, X, output=output)
    np.testing.assert_allclose(K, exact(network, X, output), rtol=1e-11, atol=1e-14)
    Y = randn(2, 2, 6, 6, seed=1)
    cross = kernel(network, X, Y, output=output)
    whole = kernel(network, torch.cat([X, Y]), output=output)
    torch.testing.assert_close(cross, whole[:7, 7:])


def test_convolutions_of_many_channels_go_by_patches():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(30, 40, 1), nn.Tanh(), nn.Flatten())
    network.append(nn.Linear(40, 1)).double()
    X = randn(3, 30, 1, 1)
    K = layer_kernel(network, X)
    np.testing.assert_allclose(K, exact(network, X), rtol=1e-11)


def test_samples_and_products_are_taken_in_parts_of_any_size(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 2)),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 6 * 3, 2),
    ).double()
    X, Y = randn(7, 2, 4, 7), randn(3, 2, 4, 7, seed=1)
    expected = exact(network, torch.cat([X, Y]))
    for size in (1, 2, 5, 7, 100):
        for name in ("_SAMPLES", "_ROWS"):
            monkeypatch.setattr(f"lightning_ecd.theory.tangent.{name}", size)
        for name in ("_CACHED", "_BLOCK"):
            # bytes of a sample's patches, of all samples' gradients by one row
            monkeypatch.setattr(f"lightning_ecd.theory.tangent.{name}", 1728 * size)
        K, cross = layer_kernel(network, X), layer_kernel(network, X, Y)
        np.testing.assert_allclose(K, expected[:7, :7], rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(cross, expected[:7, 7:], rtol=1e-11, atol=1e-14)


def test_products_of_single_precision_are_summed_in_double():
    torch.manual_seed(0)
    network, X = nn.Linear(300, 1, bias=False), randn(5, 300).float()
    K = layer_kernel(network, X)
    np.testing.assert_allclose(K, X.double() @ X.double().T, rtol=1e-13)


def test_a_linear_layer_at_many_places_is_taken_apart():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2))
    network.double()
    X = randn(6, 5, 3)
    np.testing.assert_allclose(layer_kernel(network, X), exact(network, X), rtol=1e-11)


def test_frozen_parameters_do_not_count():
    network, X = convolutional(), randn(4, 2, 6, 6)
    for p in (network[0].weight, network[5].weight, network[7].bias):
        p.requires_grad_(False)
    found = [layer_kernel(network, X), jacobian_kernel(network, X)]
    trainable = [p for p in network.parameters() if p.requires_grad]
    expected = reference.tangent_kernel(lambda x: network(x[None])[0, 0], trainable, X)
    for K in found:
        np.testing.assert_allclose(K, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("memory", [1.0, 3000.0, 2**30])
def test_blocks_of_any_size_give_the_same_kernel(memory):
    network, X = shallow(6, 9), randn(8, 6)
    expected = exact(network, X)
    found = jacobian_kernel(network, X, memory=memory)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    cross = jacobian_kernel(network, X[:5], X, memory=memory)
    np.testing.assert_allclose(cross, expected[:5], rtol=1e-12, atol=1e-13)


def test_products_are_those_of_the_kernel():
    network, X = convolutional(), randn(7, 2, 6, 6)
    V = randn(3, 7, seed=2)
    found = KernelProduct(network, X, output=1, chunk=3)(V)
    torch.testing.assert_close(found, V @ jacobian_kernel(network, X, output=1))


def test_what_layers_cannot_tell_goes_by_jacobians():
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    X = randn(5, 3)
    with pytest.raises(UserError, match=r"1.weight.*jacobian_kernel"):
        layer_kernel(network, X)
    np.testing.assert_allclose(
        jacobian_kernel(network, X), exact(network, X), rtol=1e-11
    )
    layer = nn.Linear(3, 3)
    with pytest.raises(UserError, match="twice"):
        layer_kernel(nn.Sequential(layer, nn.Tanh(), layer), X.float())
    groups = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Flatten())
    with pytest.raises(UserError, match="groups"):
        layer_kernel(groups, randn(2, 2, 1, 1).float())


def test_the_network_stays_as_it_was():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    X = randn(5, 3)
    layer_kernel(network, X)
    jacobian_kernel(network, X)
    KernelProduct(network, X)(X.T)
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert not network[0]._forward_hooks


def test_the_analytic_kernel_follows_the_formulas():
    X, Y = randn(4, 5), randn(3, 5, seed=1)
    for sigmas in ((1.0, 1.0), (1.3, 0.4)):
        found = analytic_kernel(X, Y, *sigmas)
        for i, x in enumerate(X.numpy()):
            for j, y in enumerate(Y.numpy()):
                expected = reference.analytic_kernel(x, y, *sigmas)
                assert found[i, j].item() == pytest.approx(expected, rel=1e-12)


def test_wide_nets_have_the_analytic_kernel():
    d, h = 5, 200_000
    X = randn(6, d)
    for sw, sb in ((1.0, 1.0), (1.4, 0.5)):
        weights = (
            sw * randn(h, d, seed=1),
            sb * randn(h, seed=2),
            sw * randn(1, h, seed=3),
        )
        K = shallow_kernel(X, *weights)
        torch.testing.assert_close(
            K, analytic_kernel(X, None, sw, sb), rtol=0.03, atol=0.01
        )


def test_factors_and_draws_agree_for_unit_variances():
    X = randn(6, 4)
    K = analytic_kernel(X)
    torch.testing.assert_close(analytic_kernel(X, factors=True), K)
    torch.testing.assert_close(analytic_kernel(X, X), K, rtol=1e-7, atol=1e-7)
    other = analytic_kernel(X, None, 1.5, 0.5)
    assert (analytic_kernel(X, None, 1.5, 0.5, factors=True) - other).abs().max() > 0.1


def test_the_released_kernel_lacks_the_norms():
    X = randn(6, 4)
    assert (analytic_kernel(X, reference=True) - analytic_kernel(X)).abs().max() > 0.1


def test_kernels_are_saved_and_loaded(tmp_path):
    K, y = randn(4, 4), randn(4)
    save_kernel(tmp_path / "k.pt", K, y)
    found = load_kernel(tmp_path / "k.pt")
    assert torch.equal(found[0], K) and torch.equal(found[1], y)


def test_files_that_are_no_kernels_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file"):
        load_kernel(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        load_kernel(tmp_path / "bad.pt")
    torch.save({"NTK_train_train": randn(3, 4)}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="target_train_train"):
        load_kernel(tmp_path / "part.pt")
    save_kernel(tmp_path / "shape.pt", randn(3, 4), randn(3))
    with pytest.raises(UserError, match="shapes"):
        load_kernel(tmp_path / "shape.pt")


def test_too_many_samples_are_refused_with_what_fits():
    require_room(1000, 4.0, 2**30)
    with pytest.raises(UserError, match="at most 5792 samples fit"):
        require_room(10_000, 4.0, 2**30)
