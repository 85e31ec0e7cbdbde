"""Closures, losses, hooks, and randomness: what `step` promises."""

import inspect
import random

import numpy as np
import pytest
import torch
from torch.optim import optimizer as torch_optimizer
from torch.profiler import profile

from lightning_ecd.errors import Diverged
from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers import BBI, ECD, REGISTRY, Descent, ECDSep, HeavyBall
from lightning_ecd.optimizers.directions import Directions
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

OURS = sorted(filter(ours, REGISTRY))


def first_settings(name):
    return next(iter(CASES[name].good.values()))


@typical()
def test_step_returns_the_loss_at_the_starting_point(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    closure = closure_of(optimizer, params, quadratic)
    for _ in range(12):
        expected = quadratic(params).item()
        if getattr(type(optimizer), "begin", None) not in (None, Descent.begin):
            expected = at_the_first_replica(optimizer, params)
        assert optimizer.step(closure).item() == pytest.approx(expected, rel=1e-14)


def at_the_first_replica(optimizer, params):
    """Return the loss where the first of several replicas stands."""
    vectors = optimizer.vectors
    if "offset_0" not in vectors:
        return quadratic(params).item()
    v = values(params) + vectors["offset_0"]
    return quadratic([v]).item()


@pytest.mark.parametrize("name", OURS)
def test_step_returns_what_the_closure_returned(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    loss = torch.tensor(1.0)
    assert optimizer.step(lambda: loss) is loss
    assert optimizer.step(lambda: 0.9) == 0.9


@pytest.mark.parametrize("name", OURS)
def test_the_closure_runs_with_gradients_and_the_update_without(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    seen = []

    def closure():
        seen.append(torch.is_grad_enabled())
        return quadratic(params)

    with torch.no_grad():
        optimizer.step(closure)
    assert seen and all(seen)
    assert all(p.requires_grad and p.is_leaf for p in params)


@pytest.mark.parametrize("name", sorted(n for n in OURS if REGISTRY[n].traits.closure))
def test_a_missing_closure_is_a_clear_error_that_changes_nothing(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    with pytest.raises(TypeError, match=f"{name}.step needs a closure"):
        optimizer.step()
    assert torch.equal(values(params), values(start()))
    descend(optimizer, params, quadratic, 1)


@pytest.mark.parametrize(
    "name", sorted(n for n in REGISTRY if not REGISTRY[n].traits.closure)
)
def test_gradients_present_suffice_where_no_closure_is_declared(name):
    settings = first_settings(name)
    with_closure, without = start(), start()
    a, b = build(name, settings, with_closure), build(name, settings, without)
    for _ in range(5):
        a.step(closure_of(a, with_closure, quadratic))
        b.zero_grad()
        quadratic(without).backward()
        assert b.step() is None
    assert torch.equal(values(with_closure), values(without))


@pytest.mark.parametrize("name", OURS)
def test_a_closure_that_returns_none_is_a_clear_error(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    with pytest.raises(TypeError, match="returned None: it must return the loss"):
        optimizer.step(lambda: None)
    assert torch.equal(values(params), values(start()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@typical(ours)
def test_a_loss_that_is_not_finite_stops_and_leaves_all_as_it_was(name, settings, bad):
    params, others = start(), start()
    optimizer, other = build(name, settings, params), build(name, settings, others)
    descend(optimizer, params, quadratic, 6)
    descend(other, others, quadratic, 6)
    before = values(params)
    with pytest.raises(Diverged) as error:
        descend(optimizer, params, lambda p: quadratic(p) * bad, 1)
    message = str(error.value)
    assert "step 6" in message and str(bad) in message and name in message
    assert torch.equal(values(params), before)
    resumed = build(name, settings, params)
    resumed.load_state_dict(optimizer.state_dict())
    descend(resumed, params, quadratic, 10)
    descend(other, others, quadratic, 10)
    assert torch.equal(values(params), values(others))


@pytest.mark.parametrize("name", OURS)
def test_a_first_loss_that_is_not_finite_names_step_0(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    with pytest.raises(Diverged, match="step 0: the loss is nan"):
        optimizer.step(lambda: torch.tensor(float("nan")))
    assert torch.equal(values(params), values(start()))


@typical(lambda name: ours(name) and REGISTRY[name].traits.needs_gradient)
def test_a_gradient_that_is_not_finite_stops_at_the_next_loss(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 2)

    def broken():
        loss = closure_of(optimizer, params, quadratic)()
        params[0].grad.view(-1)[0] = float("nan")
        return loss

    with pytest.raises(Diverged, match=name):
        optimizer.step(broken)
        descend(optimizer, params, quadratic, 2)


@variants()
def test_the_same_seed_gives_the_same_bits_whatever_else_draws(name, settings):
    results = []
    for disturbed in (False, True):
        params = start()
        optimizer = build(name, settings, params)
        for i in range(20):
            descend(optimizer, params, rosenbrock, 1)
            if disturbed:
                torch.manual_seed(i)
                torch.randn(i)
                random.random()
                np.random.rand()
        results.append(values(params))
    assert torch.equal(*results)


@typical(ours)
def test_the_global_generators_are_left_alone(name, settings):
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    params = start()
    descend(build(name, settings, params), params, rosenbrock, 20)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@variants(ours)
def test_seeds_matter_where_noise_is_drawn(name, settings):
    if "seed" not in inspect.signature(REGISTRY[name].cls).parameters:
        assert not REGISTRY[name].traits.draws_noise
        return
    draws, results = [], []
    for seed in (0, 0, 1):
        params = start()
        optimizer = build(name, {**settings, "seed": seed}, params)
        if isinstance(optimizer, ECD):
            law = optimizer.draw

            def draw(kind, like, law=law):
                draws.append(kind)
                return law(kind, like)

            optimizer.draw = draw
        optimizer.body_of = lambda x: Counting(draws)
        descend(optimizer, params, rosenbrock, 20)
        results.append(values(params))
    assert torch.equal(results[0], results[1])
    drawn = bool(draws) or isinstance(optimizer, Directions)
    assert torch.equal(results[0], results[2]) != drawn


class Counting(Eager):
    """The eager passes, which note when they draw."""

    def __init__(self, draws):
        self.draws = draws

    def normals(self, like, seed, step, offset):
        self.draws.append("normal")
        return super().normals(like, seed, step, offset)


@typical(ours)
def test_step_hooks_run_exactly_once(name, settings):
    calls = []
    params = start()
    optimizer = build(name, settings, params)
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: calls.append("pre")),
        optimizer.register_step_post_hook(lambda o, a, k: calls.append("post")),
        torch_optimizer.register_optimizer_step_pre_hook(
            lambda o, a, k: calls.append("all pre")
        ),
        torch_optimizer.register_optimizer_step_post_hook(
            lambda o, a, k: calls.append("all post")
        ),
    ]
    try:
        descend(optimizer, params, quadratic, 1)
        assert sorted(calls) == ["all post", "all pre", "post", "pre"]
    finally:
        for handle in handles:
            handle.remove()
    descend(optimizer, params, quadratic, 1)
    assert len(calls) == 4


@pytest.mark.parametrize("watched", [False, True])
def test_hooks_change_nothing(watched):
    def run(hooked):
        params = start()
        optimizer = BBI(params, lr=0.05, patience=5)
        if hooked:
            optimizer.register_step_post_hook(lambda *_: None)
        descend(optimizer, params, rosenbrock, 20)
        return values(params)

    assert torch.equal(run(watched), run(False))


@pytest.mark.parametrize("name", OURS)
def test_the_profiler_records_the_step_once(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    descend(optimizer, params, quadratic, 1)
    with profile() as record:
        descend(optimizer, params, quadratic, 2)
    counts = {event.key: event.count for event in record.key_averages()}
    assert counts[f"Optimizer.step#{name}.step"] == 2


@pytest.mark.parametrize("name", OURS)
def test_info_holds_plain_numbers_on_the_cpu(name):
    params = start()
    optimizer = build(name, first_settings(name), params)
    descend(optimizer, params, quadratic, 9)
    for value in optimizer.info.values():
        short = isinstance(value, torch.Tensor) and value.dim() > 0
        assert short or isinstance(value, (int, float))


def test_evaluate_refreshes_the_gradient_at_the_current_point():
    class Twice(Descent):
        traits = HeavyBall.traits

        def update(self, loss, evaluate):
            first = self.g.clone()
            self.x.add_(1.0)
            assert evaluate() > loss
            assert torch.equal(self.g, first + 1.0)
            self.x.sub_(1.0)

    p = torch.ones(3, requires_grad=True)
    optimizer = Twice([p], {})
    loss = optimizer.step(closure_of(optimizer, [p], lambda q: 0.5 * (q[0] ** 2).sum()))
    assert loss.item() == 1.5
    assert torch.equal(p.detach(), torch.ones(3))


def test_extra_arguments_of_step_reach_the_update():
    class Curious(Descent):
        traits = HeavyBall.traits

        def update(self, loss, evaluate, value):
            self.info = {"value": value}

    optimizer = Curious([torch.ones(1, requires_grad=True)], {})
    optimizer.step(lambda: 1.0, value=7.0)
    assert optimizer.info["value"] == 7.0


@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_a_subclass_that_calls_its_parent_step_works(cls):
    class Wrapped(cls):
        def step(self, closure=None, **extra):
            return super().step(closure, **extra)

    ours_, theirs = start(), start()
    descend(Wrapped(ours_), ours_, quadratic, 3)
    descend(cls(theirs), theirs, quadratic, 3)
    assert torch.equal(values(ours_), values(theirs))
