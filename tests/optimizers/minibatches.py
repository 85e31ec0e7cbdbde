"""A problem of mini-batches, and how far an optimizer departs from a transcription."""

import torch

from lightning_ecd.kernels import Eager
from tests.cases import PROBLEMS, closure_of, values


class Batches:
    """A problem whose every evaluation sees another mini-batch."""

    def __init__(self, problem):
        self.problem, self.calls = PROBLEMS[problem], 0

    def __call__(self, params):
        v = torch.cat([p.reshape(-1) for p in params])
        waves = torch.sin(torch.arange(v.numel(), dtype=v.dtype) + 2.0 * self.calls)
        self.calls += 1
        return self.problem(params) + 0.3 * (waves * v).sum()


def tape():
    draws = torch.Generator().manual_seed(5)
    return lambda count: torch.randn(count, generator=draws, dtype=torch.float64)


class Taped(Eager):
    """The eager passes with recorded noise."""

    def __init__(self):
        self.tape = tape()

    def normals(self, like, seed, step, offset):
        return self.tape(like.numel()).to(like)


def deviation(optimizer, rule, copies, params, problem, arguments=(), steps=60):
    """Return the largest relative difference between fast and slow trajectory."""
    fast_loss, slow_loss = Batches(problem), Batches(problem)
    closure = closure_of(optimizer, params, fast_loss)

    def evaluate():
        leaves = [x.detach().clone().requires_grad_() for x in copies]
        value = slow_loss(leaves)
        return value.item(), list(torch.autograd.grad(value, leaves))

    worst = 0.0
    for _ in range(steps):
        a, b = optimizer.step(closure).item(), rule.step(evaluate, *arguments)
        x, y = values(params), values(copies)
        worst = max(worst, float((x - y).norm() / y.norm()), abs(a - b) / abs(b))
    assert fast_loss.calls == slow_loss.calls
    return worst
