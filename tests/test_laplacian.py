import copy

import pytest
import torch
from torch import nn

from lightning_ecd.laplacian import laplacian, probes, propagates
from modules.dense import MLP, Residual, ResidualMLP
from modules.layers import ACTIVATIONS
from tests.reference.poisson import nested

SMOOTH = sorted(set(ACTIVATIONS) - {"identity", "relu"})
NETWORKS = {
    "mlp": lambda activation: MLP(3, [8, 7, 6], activation=activation),
    "residual": lambda activation: ResidualMLP(3, 8, 2, activation=activation),
}


class Hidden(nn.Module):
    """A network whose layers nobody can see."""

    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, x):
        return self.inner(x)


def made(network, activation="tanh"):
    torch.manual_seed(5)
    return NETWORKS[network](activation).double()


def points(count=11, dimensions=3):
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, dimensions, generator=draws, dtype=torch.float64)


def close(one, other, tolerance=1e-12):
    scale = float(other.detach().abs().max().clamp(min=1))
    return float((one - other).detach().abs().max()) <= tolerance * scale


@pytest.mark.parametrize("hidden", [False, True], ids=["forward", "fallback"])
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("network", NETWORKS)
def test_all_three_equal_nested_autograd(network, activation, hidden):
    net, x = made(network, activation), points()
    found = laplacian(Hidden(net) if hidden else net, x, gradient=True)
    u, gradient, bend = nested(net, x)
    assert close(found.value[:, 0], u)
    assert close(found.laplacian[:, 0], bend)
    assert close(found.gradient[:, :, 0].T, gradient)


def residual(u, bend):
    return (-bend + u * u - 1).square().mean()


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_and_their_gradients_equal_nested_autograd(network, activation):
    net, x = made(network, activation), points()
    params = list(net.parameters())
    found = laplacian(net, x)
    u, _, bend = nested(net, x)
    losses = (
        residual(found.value[:, 0], found.laplacian[:, 0]),
        residual(u, bend),
    )
    ours, theirs = (torch.autograd.grad(v, params, create_graph=True) for v in losses)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    seconds = [
        torch.autograd.grad(sum(g.square().sum() for g in grads), params)
        for grads in (ours, theirs)
    ]
    assert all(close(a, b, 1e-11) for a, b in zip(*seconds, strict=True))


def test_gradients_with_respect_to_the_returned_gradient_and_the_points():
    net, x = made("residual"), points().requires_grad_()
    params = [*net.parameters(), x]
    found = laplacian(net, x, gradient=True)
    ours = torch.autograd.grad(
        found.gradient.pow(3).sum() + found.laplacian.sin().sum(),
        params,
        materialize_grads=True,  # the last bias moves neither
    )
    y = points().requires_grad_()
    u = net(y).squeeze(1)
    (g,) = torch.autograd.grad(u.sum(), y, create_graph=True)
    bend = sum(
        torch.autograd.grad(g[:, i].sum(), y, create_graph=True)[0][:, i]
        for i in range(3)
    )
    theirs = torch.autograd.grad(
        g.pow(3).sum() + bend.sin().sum(),
        [*net.parameters(), y],
        materialize_grads=True,
    )
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_known_laplacian():
    # sin(a.x) has the Laplacian -|a|^2 sin(a.x)
    net = MLP(3, [1], activation="sin").double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0, -2.0]]))
        net[0].bias.zero_()
        net[2].weight.fill_(1)
        net[2].bias.zero_()
    x = points()
    found = laplacian(net, x)
    assert close(found.laplacian, -9 * found.value)
    assert close(found.value[:, 0], torch.sin(x @ torch.tensor([1.0, 2, -2]).double()))


@pytest.mark.parametrize("hidden", [False, True], ids=["forward", "fallback"])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_piecewise_linear_networks_have_no_laplacian(activation, hidden):
    net = made("mlp", activation)
    found = laplacian(Hidden(net) if hidden else net, points(), gradient=True)
    assert found.laplacian.shape == (11, 1) and not found.laplacian.any()
    x = points().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    assert close(found.gradient[:, :, 0].T, gradient)


@pytest.mark.parametrize("hidden", [False, True], ids=["forward", "fallback"])
def test_several_outputs_are_independent(hidden):
    torch.manual_seed(0)
    net = MLP(3, [6, 6], outputs=2).double()
    x = points()
    found = laplacian(Hidden(net) if hidden else net, x, gradient=True)
    for k in range(2):
        u, gradient, bend = nested(lambda y, k=k: net(y)[:, k : k + 1], x)
        assert close(found.value[:, k], u)
        assert close(found.laplacian[:, k], bend)
        assert close(found.gradient[:, :, k].T, gradient)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("hidden", [False, True], ids=["forward", "fallback"])
def test_works_without_a_graph(hidden, mode):
    net, x = made("mlp"), points()
    with mode():
        found = laplacian(Hidden(net) if hidden else net, x, gradient=True)
    assert not found.laplacian.requires_grad
    assert close(found.laplacian[:, 0], nested(net, x)[2])


def test_dropout_drops_the_same_units_in_every_derivative():
    torch.manual_seed(0)
    net = MLP(3, [16, 16], dropout=0.5).double()
    assert propagates(net)
    x = points(1).expand(1, 3)
    torch.manual_seed(7)
    found = laplacian(net, x)
    torch.manual_seed(7)
    masks = [torch.nn.functional.dropout(torch.ones(1, 16).double()) for _ in range(2)]

    def masked(y):
        h = torch.tanh(net[0](y)) * masks[0]
        return net[6](torch.tanh(net[3](h)) * masks[1])

    u, _, bend = nested(masked, x)
    assert close(found.value[:, 0], u) and close(found.laplacian[:, 0], bend)


def test_what_propagates_and_what_falls_back():
    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    assert propagates(nn.Sequential(*layers))
    assert propagates(nn.Sequential(nn.Linear(3, 3), nn.Sequential(*layers)))
    assert propagates(nn.Sequential(Residual(nn.Linear(3, 3), nn.GELU()), *layers))
    assert not propagates(Doubled(*layers))
    assert not propagates(nn.Sequential(*layers[:1], nn.LayerNorm(4), *layers[2:]))
    assert not propagates(nn.GELU(approximate="tanh"))
    assert not propagates(nn.Softplus(beta=2))
    hooked = nn.Sequential(*copy.deepcopy(layers))
    hooked[0].register_forward_hook(lambda module, inputs, output: 3 * output)
    assert not propagates(hooked)
    weighted = nn.Sequential(*copy.deepcopy(layers))
    nn.utils.parametrizations.weight_norm(weighted[0])
    assert not propagates(weighted)


def test_what_falls_back_is_right():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 1))
    net, x = net.double(), points()
    found = laplacian(net, x)
    u, _, bend = nested(net, x)
    assert close(found.laplacian[:, 0], bend)
    params = list(net.parameters())
    ours = torch.autograd.grad(
        residual(found.value[:, 0], found.laplacian[:, 0]), params
    )
    theirs = torch.autograd.grad(residual(u, bend), params)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def test_softplus_is_linear_beyond_its_threshold():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Softplus()).double()
    net[0].weight.data.fill_(1)
    x = torch.tensor([[0.5], [19.0], [21.0]]).double()
    found = laplacian(net, x)
    u, _, bend = nested(net, x)
    assert close(found.laplacian[:, 0], bend) and found.laplacian[2] == 0


@pytest.mark.parametrize("hidden", [False, True], ids=["forward", "fallback"])
def test_second_derivatives_along_directions(hidden):
    net, x = made("residual"), points()
    v = points(22).view(2, 11, 3)
    found = laplacian(Hidden(net) if hidden else net, x, v, gradient=True)
    for n in range(11):
        hessian = torch.autograd.functional.hessian(
            lambda y: net(y.unsqueeze(0)).sum(), x[n]
        )
        total = sum(v[p, n] @ hessian @ v[p, n] for p in range(2))
        assert close(found.laplacian[n, 0], total)
    slopes = (v * nested(net, x)[1]).sum(2)
    assert close(found.gradient[:, :, 0], slopes)


def test_probes_estimate_the_laplacian_without_bias():
    net, x = made("mlp"), points(4)
    exact = laplacian(net, x).laplacian
    runs = torch.stack(
        [laplacian(net, x, probes(x, 2, 9, k)).laplacian for k in range(500)]
    )
    error = runs.std(0) / 500**0.5
    assert ((runs.mean(0) - exact).abs() <= 4 * error).all()
    assert (error > 0).all()


def test_probes_of_all_signs_are_exact_when_the_hessian_is_diagonal():
    # u = sum_i sin(x_i): every sign vector gives the trace
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    net[0].weight.data = torch.eye(3).double()
    x = points()
    estimate = laplacian(net, x, probes(x, 1, 0)).laplacian
    assert close(estimate, laplacian(net, x).laplacian)


def test_probes_are_functions_of_seed_and_counters():
    x = points()
    torch.manual_seed(1)
    one = probes(x, 3, 4, 5)
    torch.manual_seed(2)
    assert torch.equal(one, probes(x, 3, 4, 5))
    assert not torch.equal(one, probes(x, 3, 4, 6))
    assert one.shape == (3, 11, 3)
    assert close(one.abs(), torch.full_like(one, 3**-0.5))
    with pytest.raises(ValueError, match="number must be at least 1"):
        probes(x, 0, 0)


def test_vmap_over_parameters():
    net, x = made("mlp"), points()

    class Laplacian(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return laplacian(self.net, x).laplacian

    module = Laplacian()
    params = {name: p.detach() for name, p in module.named_parameters()}
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}

    def value(p):
        return torch.func.functional_call(module, p, (x,)).square().mean()

    many = torch.func.vmap(value)(stacked)
    grads = torch.func.vmap(torch.func.grad(value))(stacked)
    for k in range(2):
        own = {name: p[k] for name, p in stacked.items()}
        assert close(many[k], value(own))
        single = torch.func.grad(value)(own)
        assert all(close(grads[name][k], single[name]) for name in own)


def test_single_precision_stays_single():
    net = made("residual").float()
    found = laplacian(net, points().float(), gradient=True)
    assert {part.dtype for part in found} == {torch.float32}
    assert close(found.laplacian.double(), laplacian(net.double(), points())[1], 1e-5)
