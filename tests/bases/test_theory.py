"""The noise floor of RBD on a quadratic, predicted and measured."""

import pytest
import torch

from lightning_ecd.bases.theory import noise_floor
from lightning_ecd.optimizers import RBD

H = torch.linspace(0.5, 2.0, 16, dtype=torch.float64)
NOISE, LR, DIMENSIONS = 0.3, 0.5, 4
BLOCKS, LENGTH = 14, 300


def measured(basis):
    """Mean squares of w in blocks of a long run, after the first, (blocks, 16)."""
    w = torch.nn.Parameter(torch.zeros(16, dtype=torch.float64))
    optimizer = RBD([w], lr=LR, dimensions=DIMENSIONS, basis=basis, diagnostics_every=0)
    draws = torch.Generator().manual_seed(3)
    loss = torch.zeros(())
    w.grad = torch.zeros_like(w)
    totals = torch.zeros(BLOCKS + 1, 16, dtype=torch.float64)
    for step in range(LENGTH * len(totals)):
        noise = torch.randn(16, generator=draws, dtype=torch.float64)
        w.grad.copy_(H * w.detach() + NOISE * noise)
        optimizer.step(lambda: loss)
        totals[step // LENGTH] += w.detach().square() / LENGTH
    return totals[1:]


@pytest.mark.parametrize("basis", ["in_law", "normal"])
def test_the_noise_floor_is_the_predicted_one(basis):
    predicted, sgd = noise_floor(H, NOISE, LR, DIMENSIONS)
    blocks = measured(basis)
    for found, expected in ((blocks.mean(1), predicted.mean()), (blocks, predicted)):
        error = found.std(0) / BLOCKS**0.5
        assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (blocks.mean(1).std() / BLOCKS**0.5) < 0.08 * predicted.mean()
    assert predicted.mean() > 3 * sgd.mean()  # the directions' own noise


def test_one_dimension_in_closed_form():
    """D = d = 1: s = z² g, of which E[z²] = 1 and E[z⁴] = 3."""
    m, sgd = noise_floor(torch.tensor([0.5]), 2.0, 0.4, 1)
    # m = E(1 - η z² h)² m + 3 η² σ²
    shrink = 1 - 2 * 0.4 * 0.5 + 3 * 0.4**2 * 0.5**2
    assert m.item() == pytest.approx(3 * 0.4**2 * 4 / (1 - shrink))
    assert sgd.item() == pytest.approx(0.4**2 * 4 / (1 - (1 - 0.4 * 0.5) ** 2))


def test_many_directions_are_sgd_but_for_the_noise_of_few():
    """As d grows at a fixed d η/D, the floor falls to that of SGD, like 1 + D/d."""
    h = torch.full((50,), 0.1)
    for d in (500, 50_000):
        m, sgd = noise_floor(h, 1.0, 0.01 * 50 / d, d)
        assert (m / sgd).mean().item() == pytest.approx(1 + 51 / d, rel=1e-3)


def test_rates_that_diverge_are_refused():
    with pytest.raises(ValueError, match="^lr must be below"):
        noise_floor(H, 0.0, 20.0, 4)
