"""A whole inspection: its numbers against dense algebra, its progress, its refusals."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from datamodules import Digits
from lightning_ecd.curvature import Loss, batches_of
from lightning_ecd.curvature.figures import drawn
from lightning_ecd.curvature.inspection import Inspection
from lightning_ecd.errors import UserError


def loss_of(scale=1.0, samples=11):
    """Cross-entropy of a small network over batches of 7 and 4."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=draws, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.mul_(scale)
    batches = [(part, torch.arange(len(part)) % 3) for part in x.split(7)]
    return Loss(model, batches, lambda b: cross_entropy(model(b[0]), b[1]))


def dense(loss):
    return torch.linalg.eigvalsh(loss.hessian())


def test_numbers_are_those_of_the_dense_matrix():
    loss = loss_of()
    values = dense(loss)
    found = Inspection(probes=3, steps=50, products=12, top=2, diagonal=True).run(loss)
    number = {name: value for name, (value, _) in found.numbers.items()}
    assert number["lowest_eigenvalue"] == pytest.approx(values[0].item())
    assert number["largest_eigenvalue"] == pytest.approx(values[-1].item())
    assert number["top_2"] == pytest.approx(values[-2].item(), rel=1e-3)
    for name in ("trace", "trace_hutchpp"):
        value, error = found.numbers[name]
        assert value == pytest.approx(values.sum().item(), abs=4 * error)
    exact = loss.hessian().diagonal()
    error = torch.from_numpy(found.arrays["diagonal_error"])
    deviation = (torch.from_numpy(found.arrays["diagonal"]) - exact).abs()
    assert (deviation <= 5 * error + 1e-3).all()


def test_exact_spectrum_counts_eigenvalues():
    loss = loss_of()
    values = dense(loss)
    found = Inspection(exact=True, products=0, top=0).run(loss)
    torch.testing.assert_close(torch.from_numpy(found.arrays["nodes"])[0], values)
    share = (values.abs() < 1e-2).double().mean().item()
    for name in ("", "_least", "_most"):
        value = found.numbers[f"share_within_1e-2{name}"][0]
        assert value == pytest.approx(share)


@pytest.mark.parametrize("exact", [False, True])
def test_every_stage_announces_the_progress_that_it_makes(exact):
    loss, stages = loss_of(), []
    loss.progress = lambda: stages[-1].append(1)

    def stage(name, total):
        stages.append([name, total])

    plan = Inspection(
        exact=exact,
        probes=3,
        steps=5,
        diagonal=True,
        points=3,
        plane=2,
        probe_steps=7,
    )
    plan.run(loss, stage, other=loss.x + 1)
    names = [name for name, *_ in stages]
    assert len(names) == len(set(names)) == 11
    for name, total, *told in stages:
        assert total in (None, len(told)), name


def test_the_point_is_left_as_it_was_and_everything_is_drawn():
    loss = loss_of()
    x = loss.x
    plan = Inspection(probes=2, steps=5, points=3, plane=3, probe_steps=5)
    found = plan.run(loss, other=x + 1)
    assert torch.equal(loss.x, x)
    assert set(drawn(found, plan)) == {"spectrum", "slices", "probe"}


def test_without_slices_no_direction_is_drawn(monkeypatch):
    monkeypatch.delattr("lightning_ecd.curvature.landscape.filter_normalized")
    plan = Inspection(probes=0, products=0, top=0, points=0, plane=0)
    loss = loss_of()
    found = plan.run(loss, other=loss.x + 1)  # the way to another point needs none
    assert {"way"} == {"way", "slice_1", "plane"} & set(found.arrays)


def test_a_loss_that_is_not_finite_has_no_curvature():
    with pytest.raises(UserError, match="the loss at this point is nan"):
        Inspection().run(loss_of(scale=math.nan))


def test_batches_are_without_augmentation_and_the_same_every_time():
    def batches(data, part="train"):
        return torch.cat([b[0] for b in batches_of(data, part, 25, chunk=10)])

    plain, flipped = Digits(), Digits(augment=lambda x, draws: x.flip(-1))
    for data in (plain, flipped):
        data.setup("fit")
    assert batches(flipped).shape == (25, 1, 8, 8)
    assert torch.equal(batches(flipped), batches(plain))
    assert torch.equal(batches(plain), batches(plain))
    assert flipped.augment is not None
    none = Digits(val_size=0)
    none.setup("fit")
    with pytest.raises(UserError, match="no val samples"):
        batches(none, "val")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"plane": -1}, "plane must be at least 0, got -1"),
        ({"width": 0.0}, "width must be above 0, got 0"),
        ({"probe_lr": 0.0}, "probe_lr must be above 0, got 0"),
        ({"probe_noise": -1.0}, "probe_noise must be at least 0, got -1"),
    ],
)
def test_bad_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Inspection(**settings)
