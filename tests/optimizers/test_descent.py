"""Every optimizer descends, in every dtype, and under schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

from lightning_ecd.optimizers import REGISTRY
from tests.cases import (
    CASES,
    PROBLEMS,
    build,
    closure_of,
    descend,
    ours,
    quadratic,
    start,
    typical,
    values,
    variants,
)


@pytest.mark.parametrize("problem", PROBLEMS)
@variants()
def test_descends(name, settings, problem):
    _descends(name, settings, problem, torch.float64)


@pytest.mark.parametrize("problem", PROBLEMS)
@typical()
def test_descends_in_float32(name, settings, problem):
    _descends(name, settings, problem, torch.float32)


def _descends(name, settings, problem, dtype):
    params = start(dtype)
    optimizer = build(name, settings, params)
    losses = descend(optimizer, params, PROBLEMS[problem], 80)
    assert min(losses) < 0.8 * losses[0]
    assert all(p.dtype == dtype and p.isfinite().all() for p in params)


@typical(lambda name: REGISTRY[name].traits.bf16)
def test_descends_with_bfloat16_parameters(name, settings):
    params = start(torch.bfloat16)
    optimizer = build(name, settings, params)
    losses = descend(optimizer, params, quadratic, 80)
    assert min(losses) < 0.7 * losses[0]
    assert all(p.dtype == torch.bfloat16 for p in params)


@typical()
def test_descends_under_a_scheduler(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 120)
    closure = closure_of(optimizer, params, quadratic)
    losses = []
    for _ in range(120):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert min(losses) < 0.7 * losses[0]


def _obeys(name, settings):
    """The released rules but BBI's read their lr once; all others at each step."""
    return name == "BBI" or not settings.get("compat")


@typical()
def test_a_scheduler_set_to_zero_stops_the_motion(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 10))
    closure = closure_of(optimizer, params, quadratic)
    for _ in range(12):
        before = values(params)
        optimizer.step(closure)
        scheduler.step()
    moved = not torch.equal(values(params), before)
    assert moved != _obeys(name, settings)


@typical(ours)
def test_lr_set_by_hand_equals_lr_set_by_a_scheduler(name, settings):
    def run(scheduled):
        params = start()
        optimizer = build(name, settings, params)
        factors = [0.5 + 0.05 * i for i in range(20)]
        if scheduled:
            scheduler = lr_scheduler.LambdaLR(optimizer, lambda i: factors[min(i, 19)])
        closure = closure_of(optimizer, params, quadratic)
        for factor in factors:
            if not scheduled:
                for group in optimizer.param_groups:
                    group["lr"] = settings["lr"] * factor
            optimizer.step(closure)
            if scheduled:
                scheduler.step()
        return values(params)

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_one_cycle_and_chained_schedulers_run(name):
    settings = next(iter(CASES[name].good.values()))
    for make in (
        # without a momentum to cycle, OneCycleLR is told so
        lambda o: lr_scheduler.OneCycleLR(
            o, settings["lr"], total_steps=30, cycle_momentum=False
        ),
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ExponentialLR(o, 0.98), lr_scheduler.ConstantLR(o, 0.5, 5)]
        ),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.StepLR(o, 9)],
            [5],
        ),
    ):
        params = start()
        optimizer = build(name, settings, params)
        scheduler = make(optimizer)
        closure = closure_of(optimizer, params, quadratic)
        seen = set()
        for _ in range(20):
            optimizer.step(closure)
            scheduler.step()
            seen.add(optimizer.param_groups[0]["lr"])
        assert len(seen) > 2
        assert closure().item() < quadratic(start()).item()
