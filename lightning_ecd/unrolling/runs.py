"""Runs of a rule that go on from window to window."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from lightning_ecd.rules import Context, State, UpdateRule
from lightning_ecd.unrolling.problem import FlatProblem, Window

#: Weights of a rule by name, one set for each run: (B, ...).
Weights = dict[str, Tensor]
#: Draws the scales (n,) of the run of a seed.
Scales = Callable[[int], Tensor]


@dataclass(frozen=True)
class Runs:
    """Where B runs are.

    Attributes:
        x: Their parameters, shape (B, n).
        state: Of the rule, tensors (B, ...).
        scale: What the problem multiplies the parameters with, shape (B, n), or None.
    """

    x: Tensor
    state: State
    scale: Tensor | None = None

    def detached(self) -> "Runs":
        """Return the runs cut from the graph."""
        state = {name: h.detach() for name, h in self.state.items()}
        return replace(self, x=self.x.detach(), state=state)

    def rows(self, chosen: slice) -> "Runs":
        """Return some of the runs."""
        scale = None if self.scale is None else self.scale[chosen]
        state = {name: h[chosen] for name, h in self.state.items()}
        return Runs(self.x[chosen], state, scale)

    def replaced(self, rows: np.ndarray, new: "Runs") -> "Runs":
        """Return the runs with others in their rows."""
        index = torch.from_numpy(rows).to(self.x.device)
        scale = self.scale
        if scale is not None and new.scale is not None:
            scale = scale.index_copy(0, index, new.scale)
        state = {
            name: h.index_copy(0, index, new.state[name])
            for name, h in self.state.items()
        }
        return Runs(self.x.index_copy(0, index, new.x), state, scale)

    def to(self, device: torch.device) -> "Runs":
        """Return the runs on a device."""
        scale = None if self.scale is None else self.scale.to(device)
        state = {name: h.to(device) for name, h in self.state.items()}
        return Runs(self.x.to(device), state, scale)

    def tensors(self) -> dict[str, Any]:
        """Return the runs as plain data, for a checkpoint."""
        return {"x": self.x, "state": dict(self.state), "scale": self.scale}


def begin(
    rule: UpdateRule,
    problem: FlatProblem,
    seeds: np.ndarray,
    like: Tensor,
    scales: Scales | None = None,
) -> Runs:
    """Return B runs at their starting points.

    Args:
        rule: Gives the states.
        problem: Gives the starting points.
        seeds: Of the runs, shape (B,).
        like: Device and dtype of the parameters.
        scales: The starting points are divided by these factors of the seeds, which
            the problem multiplies with: another problem to the rule, the same loss.
    """
    x, scale = problem.starts(seeds, like), None
    if scales is not None:
        scale = torch.stack([scales(int(seed)) for seed in seeds]).to(x)
        x = x / scale
    return Runs(x, rule.initial(x, problem.layout), scale)


def begun(
    runs: Runs | None,
    rule: UpdateRule,
    problem: FlatProblem,
    window: Window,
    t: int,
    like: Tensor,
    scales: Scales | None = None,
    copies: int = 1,
) -> Runs:
    """Return the runs at step t of a window: where it is their first, at the start.

    Args:
        runs: At the step before; None: all begin.
        rule: See `begin`.
        problem: See `begin`.
        window: Tells which runs begin.
        t: The step's number within the window.
        like: See `begin`.
        scales: See `begin`.
        copies: How often the window's runs are repeated along the first dimension.
    """
    fresh = window.step[t] == 0
    if runs is not None and not fresh.any():
        return runs
    seeds = np.tile(window.seed[t], copies)
    if runs is None or fresh.all():
        return begin(rule, problem, seeds, like, scales)
    rows = np.flatnonzero(np.tile(fresh, copies))
    return runs.replaced(rows, begin(rule, problem, seeds[rows], like, scales))


def updates(
    rule: UpdateRule,
    problem: FlatProblem,
    runs: Runs,
    gradients: Tensor,
    losses: Tensor,
    steps: Tensor,
    weights: Weights | None = None,
) -> tuple[Tensor, State]:
    """Return updates (B, n) and next states of a rule.

    Args:
        rule: The rule.
        problem: Whose runs they are.
        runs: Before the step.
        gradients: There, shape (B, n).
        losses: There, shape (B,).
        steps: Numbers of the steps, shape (B,).
        weights: A set for every run in place of the rule's own.
    """
    if weights is None:
        context = Context(runs.x, losses, steps, problem.layout)
        return rule(gradients, runs.state, context)

    def one(weights: Weights, g: Tensor, h: State, x: Tensor, f: Tensor, t: Tensor):  # type: ignore[no-untyped-def]
        context = Context(x, f, t, problem.layout)
        return functional_call(rule, weights, (g, h, context))

    return vmap(one)(weights, gradients, runs.state, runs.x, losses, steps)


def unroll(
    rule: UpdateRule,
    problem: FlatProblem,
    window: Window,
    runs: Runs | None,
    lr: float,
    like: Tensor,
    *,
    scales: Scales | None = None,
    weights: Weights | None = None,
    copies: int = 1,
) -> Iterator[tuple[Tensor, Runs]]:
    """Yield losses (B,) before and runs after each step of a window, no graph.

    Args:
        rule: The rule.
        problem: Whose runs they are.
        window: The steps.
        runs: Where they are before the window; None: all begin.
        lr: Factor of the updates.
        like: See `begin`.
        scales: See `begin`.
        weights: See `updates`.
        copies: See `begun`.
    """
    steps = step_numbers(window, like, copies)
    for t in range(len(steps)):
        batch = window.batch_of(t)
        if copies > 1:
            batch = repeated(batch, copies)
        runs = begun(runs, rule, problem, window, t, like, scales, copies)
        losses, g = problem.losses_and_gradients(runs.x, batch, runs.scale)
        u, state = updates(rule, problem, runs, g, losses, steps[t], weights)
        runs = Runs(runs.x + lr * u, state, runs.scale).detached()
        yield losses.detach(), runs


def step_numbers(window: Window, like: Tensor, copies: int = 1) -> Tensor:
    """Return a window's step numbers (W, copies B), typed as `like`, moved once."""
    return torch.from_numpy(np.tile(window.step, (1, copies))).to(like)


def repeated(batch: Any, copies: int) -> Any:
    """Return a tree of tensors (B, ...) repeated to (copies B, ...)."""
    return tree_map(lambda leaf: torch.cat([leaf] * copies), batch)
