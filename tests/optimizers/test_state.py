"""Checkpoints, copies and pickles continue to the bit."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch.optim import lr_scheduler

from lightning_ecd.optimizers import BBI, REGISTRY, ECDSep, HeavyBall
from tests.cases import (
    CASES,
    build,
    closure_of,
    descend,
    ours,
    quadratic,
    rosenbrock,
    start,
    typical,
    values,
    variants,
)


def saved(thing):
    """Return `thing` after a round trip through a file, weights only."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@variants()
@pytest.mark.parametrize("first", [1, 8])
def test_resumes_to_the_bit(name, settings, first):
    """The cases bounce at calls 7, 15 and so on: before, at and after a bounce."""
    straight, params = start(), start()
    descend(build(name, settings, straight), straight, rosenbrock, first + 20)
    optimizer = build(name, settings, params)
    descend(optimizer, params, rosenbrock, first)
    checkpoint = saved({"x": [p.detach() for p in params], "o": optimizer.state_dict()})
    fresh = start(seed=99)
    resumed = build(name, settings, fresh)
    for p, x in zip(fresh, checkpoint["x"], strict=True):
        p.data.copy_(x)
    resumed.load_state_dict(checkpoint["o"])
    descend(resumed, fresh, rosenbrock, 20)
    assert torch.equal(values(fresh), values(straight))


@typical(ours)
def test_resumes_within_a_schedule(name, settings):
    def fresh():
        params = start()
        optimizer = build(name, settings, params)
        return params, optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 30)

    def advance(params, optimizer, scheduler, steps):
        closure = closure_of(optimizer, params, quadratic)
        for _ in range(steps):
            optimizer.step(closure)
            scheduler.step()

    straight = fresh()
    advance(*straight, 25)
    half = fresh()
    advance(*half, 10)
    states = saved([half[1].state_dict(), half[2].state_dict()])
    resumed = fresh()
    with torch.no_grad():
        for p, x in zip(resumed[0], half[0], strict=True):
            p.copy_(x)
    resumed[1].load_state_dict(states[0])
    resumed[2].load_state_dict(states[1])
    advance(*resumed, 15)
    assert torch.equal(values(resumed[0]), values(straight[0]))


_RESUME = """
import sys, torch
from tests.cases import build, descend, rosenbrock, start
file = torch.load(sys.argv[1], weights_only=True)
for run in file:
    params = start(seed=99)
    optimizer = build(run["name"], run["settings"], params)
    for p, x in zip(params, run["x"], strict=True):
        p.data.copy_(x)
    optimizer.load_state_dict(run["o"])
    descend(optimizer, params, rosenbrock, 20)
    run["end"] = [p.detach() for p in params]
torch.save(file, sys.argv[1])
"""


def test_resumes_to_the_bit_in_a_fresh_process(tmp_path):
    runs, ends = [], []
    for name, label in (("BBI", "bouncing"), ("ECDSep", "turning")):
        settings, params = CASES[name].good[label], start()
        optimizer = build(name, settings, params)
        descend(optimizer, params, rosenbrock, 14)
        x = [p.detach().clone() for p in params]
        runs.append(
            {"name": name, "settings": settings, "x": x, "o": optimizer.state_dict()}
        )
        descend(optimizer, params, rosenbrock, 20)
        ends.append(values(params))
    file = tmp_path / "runs.pt"
    torch.save(runs, file)
    subprocess.run(
        [sys.executable, "-c", _RESUME, str(file)],
        check=True,
        cwd=Path(__file__).parents[2],
    )
    for run, end in zip(torch.load(file, weights_only=True), ends, strict=True):
        assert torch.equal(values(run["end"]), end)


def _leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _leaves(value)
    else:
        yield tree


@variants()
def test_state_dict_holds_plain_tensors_and_numbers(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 9)
    for leaf in _leaves(optimizer.state_dict()):
        assert type(leaf) in (torch.Tensor, float, int, bool, str, type(None))


@typical(ours)
def test_state_dict_is_a_snapshot(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 5)
    snapshot = optimizer.state_dict()
    before = copy.deepcopy(snapshot)
    descend(optimizer, params, quadratic, 5)
    now, then = list(_leaves(snapshot)), list(_leaves(before))
    assert len(now) == len(then)
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(now, then, strict=True)
    )


@typical(ours)
def test_a_loaded_optimizer_does_not_share_the_checkpoint(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 5)
    snapshot = optimizer.state_dict()
    before = copy.deepcopy(snapshot)
    other = start()
    loaded = build(name, settings, other)
    loaded.load_state_dict(snapshot)
    descend(loaded, other, quadratic, 5)
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(_leaves(snapshot), _leaves(before), strict=True)
    )


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: cloudpickle.loads(cloudpickle.dumps(thing)),
}


@pytest.mark.parametrize("copier", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("first", [0, 8])
@typical()
def test_copies_continue_to_the_bit(name, settings, first, copier):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, rosenbrock, first)
    other_params, other = copier((params, optimizer))
    descend(optimizer, params, rosenbrock, 20)
    before = values(params)
    descend(other, other_params, rosenbrock, 20)
    assert torch.equal(values(other_params), before)
    assert torch.equal(values(params), before)


@typical(ours)
def test_float32_state_survives_beside_bfloat16_parameters(name, settings):
    params = start(torch.bfloat16)
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 5)
    state = saved(optimizer.state_dict())
    vectors = [v for s in state["state"].values() for v in s.values()]
    assert all(v.dtype == torch.float32 for v in vectors)
    other = start(torch.bfloat16)
    with torch.no_grad():
        for p, x in zip(other, params, strict=True):
            p.copy_(x)
    loaded = build(name, settings, other)
    loaded.load_state_dict(state)
    descend(optimizer, params, quadratic, 5)
    descend(loaded, other, quadratic, 5)
    assert torch.equal(values(params), values(other))


@typical(ours)
def test_a_float32_checkpoint_continues_in_float64(name, settings):
    params = start(torch.float32)
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 5)
    wide = [p.detach().double().requires_grad_() for p in params]
    loaded = build(name, settings, wide)
    loaded.load_state_dict(saved(optimizer.state_dict()))
    descend(loaded, wide, quadratic, 1)
    descend(optimizer, params, quadratic, 1)
    torch.testing.assert_close(
        values(wide), values(params).double(), rtol=1e-5, atol=1e-5
    )


def test_state_of_another_size_is_refused_with_both_sizes():
    params = start(shapes=[(3,)])
    optimizer = HeavyBall(params)
    descend(optimizer, params, quadratic, 1)
    others = start(shapes=[(4,)])
    other = HeavyBall(others)
    other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="3 entries.* 4"):
        descend(other, others, quadratic, 1)


@pytest.mark.parametrize("name", sorted(filter(ours, REGISTRY)))
def test_all_that_matters_lies_in_state_and_groups(name):
    """Attributes other than torch's own are caches: dropping them changes nothing.

    But for objects that the constructor was given, which copies carry.
    """
    settings = next(iter(CASES[name].good.values()))
    params, others = start(), start()
    optimizer, other = build(name, settings, params), build(name, settings, others)
    descend(optimizer, params, rosenbrock, 5)
    descend(other, others, rosenbrock, 5)
    bare = torch.optim.Optimizer(others, {})
    for attribute in set(vars(other)) - set(vars(bare)) - set(other.__getstate__()):
        setattr(other, attribute, {} if attribute == "info" else None)
    descend(optimizer, params, rosenbrock, 10)
    descend(other, others, rosenbrock, 10)
    assert torch.equal(values(params), values(others))


@pytest.mark.parametrize("cls", [HeavyBall, BBI, ECDSep])
def test_an_optimizer_is_freed_without_the_collector(cls):
    params = start()
    optimizer = cls(params)
    gc.collect()
    gc.disable()
    try:
        descend(optimizer, params, quadratic, 2)
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
    finally:
        gc.enable()
