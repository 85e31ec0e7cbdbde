import math

import pytest
import torch
from torch import nn

from modules import MLP, ResidualMLP
from modules.layers import ACTIVATIONS, Sin


def count(network):
    return sum(p.numel() for p in network.parameters())


def test_the_network_of_the_poisson_problem_has_121401_parameters():
    assert count(ResidualMLP(2, 200, 3)) == 121_401


def test_an_mlp_is_layers_with_activations_between_them():
    net = MLP(3, [4, 5], outputs=2, activation="relu")
    kinds = [type(layer) for layer in net]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert count(net) == 4 * 4 + 5 * 5 + 6 * 2
    assert net(torch.zeros(7, 3)).shape == (7, 2)
    assert count(MLP(3, [])) == 4


def test_dropout_follows_every_activation():
    net = MLP(3, [4, 5], dropout=0.25)
    assert [layer.p for layer in net if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    assert [type(layer) for layer in net][1:3] == [nn.Tanh, nn.Dropout]
    assert not any(isinstance(layer, nn.Dropout) for layer in MLP(3, [4]))


def test_a_residual_network_adds_every_layer_to_what_came_before():
    torch.manual_seed(0)
    net = ResidualMLP(2, 5, 2).double()
    linear = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    x = torch.randn(4, 2, dtype=torch.float64)
    h = torch.sigmoid(x @ linear[0].weight.T + linear[0].bias)
    for layer in linear[1:3]:
        h = h + torch.sigmoid(h @ layer.weight.T + layer.bias)
    u = h @ linear[3].weight.T + linear[3].bias
    assert torch.allclose(net(x), u, rtol=0, atol=1e-15)


def test_weights_are_drawn_by_xavier_after_all_layers_were_built():
    torch.manual_seed(42)
    net = ResidualMLP(2, 200, 3)
    torch.manual_seed(42)
    widths = [2, 200, 200, 200, 200, 1]
    layers = [nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    for layer in layers:
        layer.weight.data.normal_(0, math.sqrt(2 / sum(layer.weight.shape)))
    found = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for one, other in zip(found, layers, strict=True):
        assert torch.equal(one.bias, other.bias)
        assert torch.allclose(one.weight, other.weight, rtol=1e-6)


def test_sine():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.equal(Sin()(z), z.sin())
    assert ACTIVATIONS["sin"] is Sin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 0}, "inputs must be at least 1, got 0"),
        ({"widths": [3, 0]}, "widths must be at least 1, got 0"),
        ({"outputs": 0}, "outputs must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"activation": "step"}, "activation must be one of gelu, .*, got 'step'"),
    ],
)
def test_bad_arguments_of_an_mlp_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**({"inputs": 2, "widths": [3]} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 0}, "inputs must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"outputs": -1}, "outputs must be at least 1, got -1"),
        ({"activation": ""}, "activation must be one of gelu"),
    ],
)
def test_bad_arguments_of_a_residual_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualMLP(**({"inputs": 2, "width": 3, "depth": 1} | arguments))
