"""Evolution strategies against their formulas; bias and its absence."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ecd.errors import UserError
from lightning_ecd.rules import RULES, UpdateRule
from lightning_ecd.unrolling import (
    FlatProblem,
    Problem,
    Window,
    evolution_gradient,
    unroll,
)
from tests.reference import evolution_gradients as slow
from tests.unrolling.test_truncated import Bowl

STD, LR = 0.05, 0.05
LIKE = torch.zeros(1, dtype=torch.float64)


class Line(Problem):
    """A parabola, whose mini-batch is nothing."""

    def initial(self, seed):
        return {"x": torch.ones(1).double()}

    def loss(self, params, batch):
        return (params["x"] - 0.3).square().sum() + 0 * batch.sum()


class Gain(UpdateRule):
    """Follows the gradient; what it learns is how far."""

    state_size = 1

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.4, 0.1], dtype=torch.float64))

    def initial(self, x, layout):
        return {"m": torch.zeros_like(x)}

    def forward(self, grad, state, context):
        m = 0.5 * state["m"] + grad
        return -self.gain[0] * grad - self.gain[1] * m, {"m": m}


def course(lengths, lanes, total):
    """Return steps and ends (total + 1, lanes) of runs of those lengths in turn."""
    step, last = np.zeros((total + 1, lanes), np.int64), np.zeros((total + 1, lanes))
    for lane in range(lanes):
        t, number = 0, lane
        while t <= total:
            length = lengths[number % len(lengths)]
            for k in range(length):
                if t + k <= total:
                    step[t + k, lane], last[t + k, lane] = k, k == length - 1
            t, number = t + length, number + 1
    return step, last.astype(bool)


def windows(lanes, W, count, lengths, features=10):
    step, last = course(lengths, lanes, W * count)
    draws = torch.Generator().manual_seed(5)
    shape = (W * count + 1, lanes, features)
    batches = torch.randn(shape, generator=draws).double() * 0.3
    seed = (np.cumsum(step == 0, 0) * 7 + np.arange(lanes)).astype(np.int64)
    parts = []
    for first in range(0, W * count, W):
        s = slice(first, first + W)
        parts.append(Window(batches[first : first + W + 1], step[s], seed[s], last[s]))
    return parts


def recorded(monkeypatch):
    """Return a list that the losses (W, 2 B) of every window are written to."""
    seen = []

    def spy(*args, **kwargs):
        found = list(unroll(*args, **kwargs))
        seen.append(torch.stack([losses for losses, _ in found]))
        return iter(found)

    monkeypatch.setattr("lightning_ecd.unrolling.evolution.unroll", spy)
    return seen


@pytest.mark.parametrize("name", ["HNNRule", "LSTMRule", "PortHamiltonianRule"])
@pytest.mark.parametrize("kind", ["es", "pes", "pes inclusive", "nres"])
def test_equals_the_formulas(name, kind, monkeypatch):
    torch.manual_seed(0)
    rule, problem = RULES[name]().double(), FlatProblem(Bowl())
    estimator, _, inclusive = kind.partition(" ")
    lengths = [5, 7, 4] if estimator != "nres" else [8]
    B, W = 3, 4
    P = sum(w.numel() for w in rule.parameters())
    seen, before, A = recorded(monkeypatch), None, np.zeros((B, P))
    redraw = np.ones(B, dtype=bool)
    for number, part in enumerate(windows(B, W, 6, lengths)):
        draws = torch.Generator().manual_seed(number)
        noise = torch.randn(B, P, generator=draws).double()
        found = evolution_gradient(
            estimator, rule, problem, part, before, LR, LIKE, noise,
            std=STD, worst=1e9, inclusive=bool(inclusive),
        )  # fmt: skip
        before = found.after
        plus, minus = seen[-1].numpy()[:, :B], seen[-1].numpy()[:, B:]
        ones, eps = np.ones((W, B)), STD * noise.numpy()
        inputs = (plus - minus, part.last, ones)
        if estimator == "es":
            expected, _ = slow.es(*inputs, eps, A, STD)
        elif estimator == "pes":
            expected, A = slow.pes(
                *inputs, eps, A, STD, inclusive=bool(inclusive), zero_last=True
            )
        else:
            A[redraw] = eps[redraw]
            expected, _ = slow.nres(*inputs, eps, A, STD, switch=False)
            redraw = part.last.any(0)
        flat = torch.cat([g.flatten() for g in found.gradients]).numpy()
        assert np.abs(flat - expected).max() <= 1e-10 * np.abs(expected).max()
        mean = slow.reported_loss(plus, minus, ones)
        assert found.losses.mean().item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("estimator", ["es", "pes", "nres"])
def test_twins_meet_the_same_problems_and_mini_batches(estimator):
    torch.manual_seed(0)
    rule, problem = RULES["HNNRule"]().double(), FlatProblem(Bowl())
    P, before = 19, None
    for part in windows(2, 4, 3, [8] if estimator == "nres" else [6]):
        noise = torch.zeros(2, P).double()
        found = evolution_gradient(
            estimator, rule, problem, part, before, LR, LIKE, noise, std=STD
        )
        before = found.after
        assert torch.equal(before.runs.x[:2], before.runs.x[2:])
        assert not any(g.any() for g in found.gradients)


def full_gradient(rule, problem, parts):
    """Return d/dw of the mean loss of whole runs, by central differences."""

    def mean():
        runs, losses = None, []
        for part in parts:
            steps = list(unroll(rule, problem, part, runs, 1.0, LIKE))
            losses += [found for found, _ in steps]
            runs = steps[-1][1]
        return torch.stack(losses).mean().item()

    slopes = []
    with torch.no_grad():
        for index in range(2):
            ends = []
            for move in (1e-5, -2e-5):
                rule.gain[index] += move
                ends.append(mean())
            rule.gain[index] += 1e-5
            slopes.append((ends[0] - ends[1]) / 2e-5)
    return np.array(slopes)


def test_pes_and_nres_are_unbiased_and_truncated_es_is_not():
    """Means over many draws of the gradient of runs that go through five windows."""
    rule, problem, B, std = Gain(), FlatProblem(Line()), 4000, 1e-3
    parts = windows(B, 2, 5, [10], features=1)
    exact = full_gradient(rule, problem, parts)
    means = {}
    for estimator in ("es", "pes", "nres"):
        torch.manual_seed(1)
        before, total = None, np.zeros(2)
        for part in parts:
            noise = torch.randn(B, 2).double()
            found = evolution_gradient(
                estimator, rule, problem, part, before, 1.0, LIKE, noise, std=std
            )
            before = found.after
            total += found.gradients[0].numpy() / len(parts)
        means[estimator] = total
    scale = np.abs(exact).max()
    assert np.abs(means["pes"] - exact).max() < 0.15 * scale
    assert np.abs(means["nres"] - exact).max() < 0.15 * scale
    assert np.abs(means["es"] - exact).max() > 0.3 * scale


def test_noise_is_drawn_anew_where_runs_begin_though_none_has_ended():
    """As where the ends of runs are dropped."""
    rule, problem = Gain(), FlatProblem(Line())
    parts = windows(2, 3, 4, [6, 6], features=1)
    parts = [p._replace(last=np.zeros_like(p.last)) for p in parts]
    for estimator in ("pes", "nres"):
        before, kept = None, []
        for number, part in enumerate(parts):
            noise = torch.full((2, 2), 1.0 + number).double()
            found = evolution_gradient(
                estimator, rule, problem, part, before, 1.0, LIKE, noise, std=1e-3
            )
            before = found.after
            kept.append(before.noise[0, 0].item() / 1e-3)
        expected = [1, 3, 3, 7] if estimator == "pes" else [1, 1, 3, 3]
        assert kept == pytest.approx(expected)


def test_nres_refuses_runs_that_end_within_a_window():
    (part,) = windows(2, 4, 1, [3], features=1)
    inputs = Gain(), FlatProblem(Line()), part, None, 1.0, LIKE
    with pytest.raises(UserError, match="nres needs runs of whole windows"):
        evolution_gradient("nres", *inputs, torch.ones(2, 2).double())


def test_losses_that_are_not_finite_count_as_the_worst():
    rule, problem = Gain(), FlatProblem(Line())
    (part,) = windows(2, 3, 1, [3], features=1)
    part.batch[1, 0] = float("nan")
    found = evolution_gradient(
        "es", rule, problem, part, None, 1.0, LIKE, torch.ones(2, 2).double(),
        std=STD, worst=20.0,
    )  # fmt: skip
    assert found.losses[1, 0].item() == 20.0
    assert all(g.isfinite().all() for g in found.gradients)
