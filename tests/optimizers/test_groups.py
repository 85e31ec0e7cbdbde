"""Groups, frozen and thawed parameters, gradients that are None."""

import pytest
import torch

from lightning_ecd.optimizers import BBI, ECDSep
from tests.cases import (
    build,
    descend,
    ours,
    quadratic,
    start,
    typical,
    values,
)


@typical()
def test_groups_have_their_own_lr(name, settings):
    a, b = start(shapes=[(6,), (6,)])
    groups = [{"params": [a]}, {"params": [b], "lr": 1e-9}]
    optimizer = build(name, settings, groups)
    before = values([a]), values([b])
    descend(optimizer, [a, b], quadratic, 5)
    assert (values([a]) - before[0]).norm() > 1e-3
    if not (name in ("ECDSep", "ECDq1") and settings.get("compat")):
        assert (values([b]) - before[1]).norm() < 1e-6


@typical()
def test_a_group_added_in_mid_run_trains(name, settings):
    a, b = start(shapes=[(6,), (4, 2)])
    optimizer = build(name, settings, [a])
    descend(optimizer, [a], quadratic, 6)
    optimizer.add_param_group({"params": [b], "lr": 0.5 * settings["lr"]})
    before, loss = values([b]), float(quadratic([a, b]).detach())
    losses = descend(optimizer, [a, b], quadratic, 80)
    assert not torch.equal(values([b]), before)
    assert min(losses) < 0.8 * loss


@typical(ours)
def test_resumes_after_a_group_was_added(name, settings):
    a, b = start(shapes=[(6,), (4, 2)])
    optimizer = build(name, settings, [a])
    descend(optimizer, [a], quadratic, 6)
    optimizer.add_param_group({"params": [b], "lr": 0.5 * settings["lr"]})
    descend(optimizer, [a, b], quadratic, 6)
    others = start(shapes=[(6,), (4, 2)])
    groups = [{"params": [others[0]]}, {"params": [others[1]]}]
    resumed = build(name, settings, groups)
    with torch.no_grad():
        for p, x in zip(others, [a, b], strict=True):
            p.copy_(x)
    resumed.load_state_dict(optimizer.state_dict())
    descend(optimizer, [a, b], quadratic, 12)
    descend(resumed, others, quadratic, 12)
    assert torch.equal(values([a, b]), values(others))


@typical()
def test_frozen_parameters_stay_and_thawed_ones_move(name, settings):
    a, b = start(shapes=[(6,), (4, 2)])
    b.requires_grad_(False)
    optimizer = build(name, settings, [a, b])
    frozen = values([b])
    descend(optimizer, [a, b], quadratic, 6)
    assert torch.equal(values([b]), frozen)
    b.requires_grad_(True)
    descend(optimizer, [a, b], quadratic, 12)
    assert not torch.equal(values([b]), frozen)
    b.requires_grad_(False)
    frozen = values([b])
    losses = descend(optimizer, [a, b], quadratic, 6)
    assert torch.equal(values([b]), frozen)
    assert all(loss == loss for loss in losses)


@typical(ours)
def test_freezing_the_first_parameter_keeps_the_state(name, settings):
    a, b = start(shapes=[(6,), (4, 2)])
    optimizer = build(name, settings, [a, b])
    descend(optimizer, [a, b], quadratic, 6)
    a.requires_grad_(False)
    before = values([b])
    descend(optimizer, [a, b], quadratic, 1)
    steps = optimizer.state_dict()["param_groups"][0]["system"]["steps"]
    assert steps == 7 and not torch.equal(values([b]), before)


@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_energy_is_right_after_freezing_a_part(cls):
    """The momentum of what froze is gone; the rest is put back on the shell."""
    a, b = start(shapes=[(6,), (4, 2)])
    optimizer = cls([a, b], lr=0.05, extra_energy=1.0)
    descend(optimizer, [a, b], quadratic, 6)
    b.requires_grad_(False)
    descend(optimizer, [a, b], quadratic, 2)
    assert abs(optimizer.info["violation"]) < 0.05


@typical(ours)
def test_a_gradient_of_none_counts_as_zero(name, settings):
    def run(zeros):
        a, b = start(shapes=[(6,), (4, 2)])
        optimizer = build(name, settings, [a, b])

        def closure():
            optimizer.zero_grad()
            loss = quadratic([a])
            loss.backward()
            b.grad = torch.zeros_like(b) if zeros else None
            return loss

        for _ in range(12):
            optimizer.step(closure)
        return values([a, b])

    assert torch.equal(run(True), run(False))
