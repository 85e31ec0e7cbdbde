"""A network that torch.compile has compiled trains as it would have otherwise."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_ecd.optimizers import REGISTRY

NAMES = ["EntropySGD", "SAM"]


def train(name, compiled):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    call = torch.compile(net, backend="aot_eager") if compiled else net
    x, y = torch.randn(2, 16, 5, dtype=torch.float64)
    optimizer = REGISTRY[name].cls(net.parameters(), lr=0.01)

    def closure():
        optimizer.zero_grad()
        loss = mse_loss(call(x).squeeze(-1), y[:, 0])
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return nn.utils.parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize("name", NAMES)
def test_compiling_changes_nothing(name):
    assert REGISTRY[name].traits.compile
    torch.testing.assert_close(
        train(name, True), train(name, False), rtol=1e-11, atol=1e-13
    )
