"""Zeroed gradients; moved, strided, empty and tied tensors; what is refused."""

import copy
import inspect

import pytest
import torch
from torch import nn

from lightning_ecd.optimizers import BBI, REGISTRY, ECDSep, HeavyBall
from tests.cases import (
    build,
    closure_of,
    descend,
    ours,
    quadratic,
    rosenbrock,
    start,
    typical,
    values,
)


@typical(ours)
def test_every_way_to_zero_gradients_gives_the_same(name, settings):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = map(nn.Parameter, start(shapes=[(6,), (4, 2)]))

    def run(zero):
        module = Two()
        params = list(module.parameters())
        optimizer = build(name, settings, params)

        def closure():
            zero(module, optimizer)
            loss = rosenbrock(params)
            loss.backward()
            return loss

        for _ in range(20):
            optimizer.step(closure)
        return values(params)

    results = [
        run(zero)
        for zero in (
            lambda module, optimizer: optimizer.zero_grad(),
            lambda module, optimizer: optimizer.zero_grad(set_to_none=False),
            lambda module, optimizer: module.zero_grad(),
            lambda module, optimizer: module.zero_grad(set_to_none=False),
        )
    ]
    assert all(torch.equal(result, results[0]) for result in results)


@typical(ours)
def test_zero_grad_leaves_views_that_are_zero(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 1)
    optimizer.zero_grad()
    assert all(not p.grad.any() for p in params)
    assert all(
        p.grad.untyped_storage().data_ptr() == optimizer.g.untyped_storage().data_ptr()
        for p in params
    )


@typical(ours)
def test_module_converted_before_the_first_step_trains_in_the_new_dtype(name, settings):
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    optimizer = build(name, settings, module.parameters())
    module.double()
    descend(optimizer, list(module.parameters()), quadratic, 3)
    assert module.weight.dtype == optimizer.x.dtype == torch.float64


@typical(ours)
def test_module_converted_after_the_first_step_is_refused(name, settings):
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    params = list(module.parameters())
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 3)
    before = values(params)
    module.double()
    with pytest.raises(RuntimeError, match="convert the module first"):
        descend(optimizer, params, quadratic, 1)
    assert torch.equal(values(params), before.double())
    module.float()
    descend(optimizer, params, quadratic, 1)


@typical(ours)
def test_new_storage_of_the_same_kind_changes_nothing(name, settings):
    """As after `.to()` and back, or after weights were replaced."""

    def run(moved):
        params = start()
        optimizer = build(name, settings, params)
        for _ in range(20):
            descend(optimizer, params, rosenbrock, 1)
            if moved:
                for p in params:
                    p.data = p.data.clone()
        return values(params)

    torch.testing.assert_close(run(True), run(False), rtol=1e-11, atol=1e-12)


@typical(ours)
def test_weights_loaded_after_building_are_those_trained(name, settings):
    module, donor = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    params = list(module.parameters())
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 2)
    module.load_state_dict(donor.state_dict())
    assert torch.equal(optimizer.x, values(list(donor.parameters())))


@typical(ours)
def test_empty_and_scalar_tensors(name, settings):
    params = start(shapes=[(0, 3), (), (4,), (2, 0), (1, 1)])
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 12)
    others = start(shapes=[(0, 3), (), (4,), (2, 0), (1, 1)])
    other = build(name, settings, others)
    descend(other, others, quadratic, 6)
    optimizer_state = copy.deepcopy(other.state_dict())
    other.load_state_dict(optimizer_state)
    descend(other, others, quadratic, 6)
    assert torch.equal(values(params), values(others))
    assert [p.shape for p in params] == [p.shape for p in others]


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_an_optimizer_of_empty_tensors_does_nothing(cls):
    p = torch.zeros(0, 3, requires_grad=True)
    optimizer = cls([p])
    optimizer.step(lambda: torch.tensor(1.0))
    assert p.shape == (0, 3)


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_an_optimizer_of_frozen_tensors_does_nothing(cls):
    p = torch.ones(3)
    optimizer = cls([p])
    optimizer.step(lambda: torch.tensor(1.0))
    assert torch.equal(p, torch.ones(3))


SILENT = {"HeavyBall": {}, "BBI": {"extra_energy": 0.3}, "ECDSep": {"nu": 0.0}}


def convolution(memory_format):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, (1, 2)), nn.Flatten())
    return net.double().to(memory_format=memory_format)


def train(net, optimizer, steps):
    torch.manual_seed(4)
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    losses = []
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = (net(images) - 1).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    return losses


@pytest.mark.parametrize("name", SILENT)
def test_channels_last_gives_the_same_trajectory_and_stays(name):
    nets = [convolution(f) for f in (torch.contiguous_format, torch.channels_last)]
    for net in nets:
        train(net, build(name, SILENT[name], net.parameters()), 20)
    torch.testing.assert_close(
        values(list(nets[0].parameters())),
        values(list(nets[1].parameters())),
        rtol=1e-9,
        atol=1e-11,
    )
    assert nets[1][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not nets[1][0].weight.is_contiguous()
    assert nets[1][0].weight.grad.stride() == nets[1][0].weight.stride()


@pytest.mark.parametrize("way", ["into channels_last", "into contiguous"])
@pytest.mark.parametrize("name", SILENT)
def test_checkpoints_load_across_memory_formats(name, way):
    formats = [torch.contiguous_format, torch.channels_last]
    if way == "into contiguous":
        formats.reverse()
    net, other = map(convolution, formats)
    optimizer = build(name, SILENT[name], net.parameters())
    train(net, optimizer, 8)
    resumed = build(name, SILENT[name], other.parameters())
    other.load_state_dict(copy.deepcopy(net.state_dict()))
    resumed.load_state_dict(optimizer.state_dict())
    train(net, optimizer, 8)
    train(other, resumed, 8)
    torch.testing.assert_close(
        values(list(net.parameters())),
        values(list(other.parameters())),
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize("name", SILENT)
def test_a_change_of_memory_format_in_mid_run_keeps_the_momentum(name):
    nets = [convolution(torch.contiguous_format) for _ in range(2)]
    optimizers = [build(name, SILENT[name], net.parameters()) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 6)
    nets[1].to(memory_format=torch.channels_last)
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 6)
    a, b = (values(list(net.parameters())) for net in nets)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@typical(ours)
def test_transposed_tensors_train_as_contiguous_ones(name, settings):
    if "bounce_every" in settings:  # draws follow memory order
        settings = {**settings, "bounce_every": 10**6, "patience": 10**6}
    accepted = inspect.signature(REGISTRY[name].cls).parameters
    quiet = {k: 0.0 for k in ("nu", "noise", "temperature") if k in accepted}
    settings = settings | quiet
    plain = start(shapes=[(3, 4), (5,)])
    turned = start(shapes=[(3, 4), (5,)])
    turned[0] = turned[0].detach().t().contiguous().t().requires_grad_()
    assert not turned[0].is_contiguous()
    losses = [
        descend(build(name, settings, params), params, quadratic, 20)
        for params in (plain, turned)
    ]
    assert turned[0].stride() == (1, 3)
    if "basis" in accepted:  # directions follow memory order, too
        assert losses[1][-1] < losses[1][0]
        return
    torch.testing.assert_close(values(plain), values(turned), rtol=1e-11, atol=1e-12)


@typical(ours)
def test_a_slice_of_a_larger_tensor_trains(name, settings):
    whole = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)
    part = whole[:, 1:3].detach().requires_grad_()
    plain = part.detach().clone().requires_grad_()
    for p in (part, plain):
        descend(build(name, settings, [p]), [p], quadratic, 20)
    assert torch.equal(part, plain)


@typical(ours)
def test_tied_parameters_count_once(name, settings):
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    net = nn.Sequential(first, second).double()
    optimizer = build(name, settings, net.parameters())
    params = list(net.parameters())
    descend(optimizer, params, quadratic, 12)
    assert optimizer.x.numel() == 16
    assert net[0].weight is net[1].weight
    assert torch.equal(net[1].weight.reshape(-1), optimizer.x)


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_complex_parameters_are_refused_by_name(cls):
    p = torch.ones(3, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match="complex parameters are not supported"):
        cls([p]).step(lambda: torch.tensor(1.0))


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_sparse_parameters_are_refused_by_name(cls):
    p = torch.eye(3).to_sparse().requires_grad_()
    with pytest.raises(ValueError, match="sparse parameters are not supported"):
        cls([p]).step(lambda: torch.tensor(1.0))


def embed(optimizer_class, sparse, zero):
    torch.manual_seed(0)
    table = nn.Embedding(5, 2, sparse=sparse)
    optimizer = optimizer_class(table.parameters())

    def closure():
        zero(table, optimizer)
        loss = table(torch.tensor([1, 2, 1])).square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    return table.weight


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_sparse_gradients_are_added_to_the_dense_ones(cls):
    def zero(table, optimizer):
        optimizer.zero_grad()

    torch.testing.assert_close(embed(cls, True, zero), embed(cls, False, zero))


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_sparse_gradients_in_place_of_dense_ones_are_refused_by_name(cls):
    with pytest.raises(ValueError, match="sparse gradients are not supported"):
        embed(cls, True, lambda table, optimizer: table.zero_grad(set_to_none=True))


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_mixed_dtypes_are_refused_by_name(cls):
    params = [
        torch.ones(2, requires_grad=True),
        torch.ones(2).double().requires_grad_(),
    ]
    with pytest.raises(ValueError, match="must share dtype and device"):
        cls(params).step(lambda: torch.tensor(1.0))


@typical(ours)
def test_parameters_and_gradients_are_views_of_two_vectors(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    closure_of(optimizer, params, quadratic)
    descend(optimizer, params, quadratic, 3)
    assert torch.equal(optimizer.x, values(params))
    assert torch.equal(optimizer.g, values([p.grad for p in params]))
    with torch.no_grad():
        optimizer.x.zero_()
    assert not any(p.any() for p in params)
