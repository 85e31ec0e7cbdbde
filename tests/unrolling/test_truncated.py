"""Gradients of windows against the full graph, one problem at a time."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from datamodules import Quadratics
from lightning_ecd.errors import UserError
from lightning_ecd.flat import Layout
from lightning_ecd.rules import RULES, Context
from lightning_ecd.unrolling import FlatProblem, Problem, Window, truncated_gradient
from modules import Quadratic
from tests.reference import meta_training as slow

LR = 0.05
CASES = [
    ("HNNRule", {}),
    ("HNNRule", {"norm": True, "epsilon": 0.0}),
    ("HNNRule", {"preproc": True}),
    ("HNNRule", {"preproc": True, "state_grad": False}),
    ("LSTMRule", {"hidden": 6}),
    ("LSTMRule", {"hidden": 6, "preproc": True}),
    ("PortHamiltonianRule", {"modes": 2, "hidden": 3}),
    ("PortHamiltonianRule", {"integrator": "semi_implicit"}),
    ("SmallFCRule", {"hidden": 8}),
]


class Bowl(Problem):
    """A quartic bowl in two tensors; a mini-batch moves its centre."""

    def initial(self, seed):
        draws = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(s, generator=draws).double() for s in ((2, 3), (4,))]
        return {"a": drawn[0], "b": drawn[1]}

    def loss(self, params, batch):
        a, b = params["a"] - batch[:6].view(2, 3), params["b"] - batch[6:]
        return a.pow(2).sum() + a.pow(4).sum() / 4 + (b * b).sum() * 2


def windows(runs, steps, window, seed=3):
    """Return the windows of runs on `Bowl`; the mini-batches of every run."""
    draws = torch.Generator().manual_seed(seed)
    batches = torch.randn(steps + 1, runs, 10, generator=draws).double() * 0.3
    seeds = np.tile(np.arange(runs), (steps, 1))
    number = np.tile(np.arange(steps)[:, None], (1, runs))
    parts = []
    for first in range(0, steps - window + 1, window):
        span = slice(first, first + window)
        parts.append(
            Window(
                batches[first : first + window + 1],
                number[span],
                seeds[span],
                number[span] == steps - 1,
            )
        )
    return parts, batches


def made(name, settings, seed=0):
    torch.manual_seed(seed)
    rule = RULES[name](**settings).double()
    if name == "PortHamiltonianRule" and settings.get("hidden"):
        with torch.no_grad():
            for w in rule.gates.parameters():
                w.add_(torch.randn_like(w) * 0.3)
    return rule


def step_of(rule, layout):
    """Return the rule as the transcription calls it."""

    def step(weights, grad, state):
        h, number, x = state
        context = Context(x, grad.new_zeros(()), grad.new_tensor(number), layout)
        u, h = functional_call(rule, weights, (grad, h, context))
        return u, (h, number + 1, x + LR * u.detach())

    return step


def reference(rule, problem, batches, run, window, **options):
    """Return the transcription's windows of one run."""
    layout = problem.layout
    theta = problem.starts([run], torch.zeros(1).double())[0]
    weights = {name: w.detach() for name, w in rule.named_parameters()}

    def loss(theta, batch):
        return problem.loss(theta, batch)

    state = (rule.initial(theta, layout), 0, theta)
    return slow.windows(
        step_of(rule, layout),
        weights,
        state,
        theta,
        loss,
        list(batches[:, run]),
        window,
        LR,
        **options,
    )


def gradients_of(rule, problem, parts, **options):
    """Return ours, window by window: by name, times runs and steps."""
    runs, like = None, torch.zeros(1).double()
    names = [name for name, _ in rule.named_parameters()]
    found = []
    for part in parts:
        truncated = truncated_gradient(rule, problem, part, runs, LR, like, **options)
        runs = truncated.after
        W, B = part.step.shape
        pairs = zip(names, truncated.gradients, strict=True)
        found.append(({name: g * W * B for name, g in pairs}, truncated.losses))
    return found


@pytest.mark.parametrize(
    "options",
    [{"score_last": False}, {"score_last": True}, {"score_last": True, "k": 1}],
    ids=["published", "last", "recompute"],
)
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_equals_the_full_graph(name, settings, options):
    recompute = options.get("k") is not None
    score_last = options["score_last"]
    rule, problem = made(name, settings), FlatProblem(Bowl())
    runs, steps, window = 2, 13, 4
    parts, batches = windows(runs, steps, window)
    ours = gradients_of(
        rule, problem, parts, score_last=score_last, recompute=recompute
    )
    slow_ones = [
        reference(rule, problem, batches, run, window, score_last=score_last)
        for run in range(runs)
    ]
    assert len(ours) == steps // window == len(slow_ones[0])
    for number, (mine, losses) in enumerate(ours):
        total = {key: sum(r[number][1][key] for r in slow_ones) for key in mine}
        scale = max(float(g.abs().max()) for g in total.values())
        for key, expected in total.items():
            assert (mine[key] - expected).abs().max() <= 1e-11 * scale, key
        if not score_last:
            expected = sum(r[number][0] for r in slow_ones)
            assert losses.sum().item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [case for case in CASES if "preproc" not in case[1] and case[0] != "SmallFCRule"],
    ids=str,
)
def test_second_order_equals_the_full_graph_that_keeps_it(name, settings):
    rule, problem = made(name, settings), FlatProblem(Bowl())
    parts, batches = windows(1, 8, 4)
    ours = gradients_of(rule, problem, parts, score_last=False, second_order=True)
    expected = reference(rule, problem, batches, 0, 4, second_order=True)
    for (mine, _), (_, theirs) in zip(ours, expected, strict=True):
        scale = max(float(g.abs().max()) for g in theirs.values())
        for key, g in theirs.items():
            assert (mine[key] - g).abs().max() <= 1e-10 * scale, key
    first_order = gradients_of(rule, problem, parts, score_last=False)
    assert any(
        (ours[0][0][k] - g).abs().max() > 0 for k, g in first_order[0][0].items()
    )


def test_the_gradient_is_that_of_the_frozen_sum_by_finite_differences():
    """Of sum <c_t, u_t(weights)> with the gradients as they were."""
    rule, problem = (
        made("LSTMRule", {"hidden": 3, "preproc": True}),
        FlatProblem(Bowl()),
    )
    (part,), batches = windows(1, 4, 4)
    like, seen = torch.zeros(1).double(), []
    forward = rule.forward

    def spying(grad, state, context):
        seen.append(grad)
        return forward(grad, state, context)

    rule.forward = spying
    found = truncated_gradient(rule, problem, part, None, LR, like, score_last=False)
    rule.forward = forward
    ahead = [LR * sum(seen[t + 1 :], torch.zeros_like(seen[0])) for t in range(4)]

    def frozen():
        state, total = rule.initial(seen[0], problem.layout), 0.0
        for grad, c in zip(seen, ahead, strict=True):
            context = Context(grad, grad.sum(-1), grad.sum(-1), problem.layout)
            u, state = rule(grad, state, context)
            total += (c * u).sum().item()
        return total

    with torch.no_grad():
        for w, g in zip(rule.parameters(), found.gradients, strict=True):
            for index in range(0, w.numel(), 7):
                entry = w.view(-1)[index]
                kept, ends = entry.item(), []
                for move in (1e-6, -1e-6):
                    entry.fill_(kept + move)
                    ends.append(frozen())
                entry.fill_(kept)
                slope = (ends[0] - ends[1]) / 2e-6
                assert 4 * g.view(-1)[index].item() == pytest.approx(
                    slope, rel=1e-5, abs=1e-9
                )


def test_the_published_window_of_one_step_has_no_gradient():
    rule, problem = made("LSTMRule", {"hidden": 3}), FlatProblem(Bowl())
    parts, _ = windows(2, 3, 1)
    for mine, _ in gradients_of(rule, problem, parts, score_last=False):
        assert not any(g.any() for g in mine.values())
    for mine, _ in gradients_of(rule, problem, parts, score_last=True):
        assert any(g.any() for g in mine.values())


def untrained(rule, steps=45):
    """Return how many weights have no gradient in any of the windows."""
    problem, parts = FlatProblem(Bowl()), windows(4, steps, 15)[0]
    total = None
    for mine, _ in gradients_of(rule, problem, parts, score_last=False):
        sizes = torch.cat([g.abs().flatten() for g in mine.values()])
        total = sizes if total is None else total + sizes
    return int((total < 1e-15 * total.max()).sum())


def alive(seed):
    """Return a port-Hamiltonian rule without dead units at both layers of v and g."""
    torch.manual_seed(seed)
    rule = RULES["HNNRule"](preproc=True).double()
    with torch.no_grad():
        for part in ("v", "g"):
            rule.gde[part][0].bias.fill_(2.0)  # features lie in [-1, 1]
    return rule


@pytest.mark.parametrize("seed", range(5))
def test_31_of_55_weights_never_train_as_published_2_by_default(seed):
    rule = alive(seed)
    assert untrained(rule) == 2
    rule.state_grad = False
    assert untrained(rule) == 31


def test_a_run_that_overflows_counts_for_nothing():
    rule, problem = made("LSTMRule", {"hidden": 3}), FlatProblem(Bowl())
    (part,), batches = windows(3, 4, 4)
    others = part.batch[:, [0, 2]].clone()
    good = truncated_gradient(rule, problem, part, None, LR, torch.zeros(1).double())
    batches[2, 1] = float("nan")
    bad = truncated_gradient(rule, problem, part, None, LR, torch.zeros(1).double())
    assert (int(good.dropped), int(bad.dropped)) == (0, 1)
    assert all(g.isfinite().all() for g in bad.gradients)
    two = Window(others, part.step[:, :2], part.seed[:, [0, 2]], part.last[:, :2])
    alone = truncated_gradient(rule, problem, two, None, LR, torch.zeros(1).double())
    for g, h in zip(bad.gradients, alone.gradients, strict=True):
        assert torch.allclose(g * 3, h * 2, rtol=1e-10, atol=1e-15)


def test_a_run_that_begins_within_a_window_is_refused():
    rule, problem = made("LSTMRule", {"hidden": 3}), FlatProblem(Bowl())
    part = windows(2, 4, 4)[0][0]
    step = part.step.copy()
    step[2, 1] = 0
    with pytest.raises(UserError, match="data.stagger"):
        truncated_gradient(
            rule, problem, part._replace(step=step), None, LR, torch.zeros(1).double()
        )


def test_quadratics_have_the_gradients_of_their_formula():
    data = Quadratics(runs=5, window=3)
    window = next(iter(data.train_dataloader()))
    problem = FlatProblem(Quadratic())
    x = torch.randn(5, 10)
    losses, g = problem.losses_and_gradients(x, window.batch_of(0))
    W, y = window.batch_of(0)
    residual = torch.einsum("bij,bj->bi", W, x) - y
    assert torch.allclose(losses, residual.square().sum(1), rtol=1e-5)
    expected = 2 * torch.einsum("bij,bi->bj", W, residual)
    assert torch.allclose(g, expected, rtol=1e-4, atol=1e-4)
    assert problem.layout == Layout(((10,),))
