"""Losses, gradients and kicks of any size in float32."""

import math

import pytest
import torch

from lightning_ecd.optimizers import BBI, ECDSep
from tests.cases import descend


def zakharov(params):
    """The test function of both papers; its minimum is 0 at the origin."""
    x = params[0]
    s = 0.5 * (torch.arange(1, x.numel() + 1, dtype=x.dtype) * x).sum()
    return (x**2).sum() + s**2 + s**4


def test_zakharov_starts_at_the_published_value():
    assert zakharov([torch.ones(10)]).item() == 572680.3125


# The published optimum of arXiv 2306.00352 (notebook): the released float32 code
# reaches 1e-29 to 1e-31 and then NaN, because |p|² exceeds 3.4e38.
PUBLISHED = {
    "lr": 9594.610818688134,
    "extra_energy": 5.051214553994412,
    "nu": 0.08155467868356955,
    "eta": 1.0115627615016867,
}


@pytest.mark.filterwarnings("ignore:ECDSep has rested")  # at V <= 1e-40
@pytest.mark.parametrize("seed", range(3))
def test_float32_reaches_the_bottom_of_zakharov_without_nan(seed):
    """Published: 1e-29 to 1e-31 within 110 to 410 steps, then NaN."""
    x = torch.ones(10, requires_grad=True)
    optimizer = ECDSep([x], seed=seed, **PUBLISHED)
    losses = descend(optimizer, [x], zakharov, 250)
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses) < 1e-7
    losses = descend(optimizer, [x], zakharov, 750)
    assert min(losses) < 1e-29
    assert all(math.isfinite(loss) for loss in losses)
    assert x.isfinite().all()


@pytest.mark.parametrize("extra", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e37])
@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_float32_losses_of_any_size_do_not_overflow(cls, scale, extra):
    """Gradients of such losses are as small or large; squares leave float32."""
    x = torch.linspace(0.5, 1.0, 10).requires_grad_()
    lr = 0.1 if cls is ECDSep else 0.1 / math.sqrt(scale)
    optimizer = cls([x], lr=lr, extra_energy=extra)
    losses = descend(optimizer, [x], lambda p: scale * (p[0] ** 2).sum(), 40)
    assert x.isfinite().all()
    assert min(losses) < 0.05 * losses[0]


@pytest.mark.parametrize("lr", [1e4, 1e8])
def test_float32_kicks_of_any_size_do_not_overflow(lr):
    x = torch.linspace(0.5, 1.0, 10).requires_grad_()
    optimizer = ECDSep([x], lr=lr, extra_energy=1.0, eta=2.0)
    losses = descend(optimizer, [x], lambda p: 1e-37 * (p[0] ** 2).sum(), 40)
    assert x.isfinite().all()
    assert min(losses) < 0.01 * losses[0]
