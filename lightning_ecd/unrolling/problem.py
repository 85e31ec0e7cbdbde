"""What an optimizer is trained and measured on, many at a time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_map

from lightning_ecd.flat import Layout


class Problem(ABC):
    """A family of problems: starting points, and a loss on mini-batches.

    Subclass it for problems of your own. `loss` is a pure function that `torch.func`
    can differentiate and vmap.
    """

    @abstractmethod
    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the parameters that the run of a seed starts from."""

    @abstractmethod
    def loss(self, params: dict[str, Tensor], batch: Any) -> Tensor:
        """Return the loss (0-d) of the parameters on a mini-batch."""


class Window(NamedTuple):
    """W successive steps of B runs at once.

    Attributes:
        batch: Mini-batches, a tree whose tensors have shape (W + 1, B, ...): those of
            the steps, and of the one that follows.
        step: Number of every step within its run, int64, shape (W, B): where it is 0
            a run begins.
        seed: Of the run, int64, shape (W, B).
        last: Whether the step is the last of its run, shape (W, B).

    The numbers are numpy's, so that they stay on the host.
    """

    batch: Any
    step: np.ndarray
    seed: np.ndarray
    last: np.ndarray

    def batch_of(self, t: int) -> Any:
        """Return the mini-batches of a step, tensors of shape (B, ...)."""
        return tree_map(lambda leaf: leaf[t], self.batch)


class FlatProblem:
    """A problem in flat vectors, B of its runs at once.

    Args:
        problem: The problem.

    Attributes:
        layout: Of the problem's parameters within a vector.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        initial = problem.initial(0)
        self.names = list(initial)
        self.layout = Layout(tuple(tuple(p.shape) for p in initial.values()))

    def starts(self, seeds: Sequence[int] | np.ndarray, like: Tensor) -> Tensor:
        """Return the starting points of runs, shape (B, n).

        Args:
            seeds: Of the runs, B of them.
            like: Device and dtype are taken from it.
        """
        points = []
        for seed in seeds:
            initial = self.problem.initial(int(seed))
            points.append(self.layout.join([initial[name] for name in self.names]))
        return torch.stack(points).detach().to(like)

    def loss(self, x: Tensor, batch: Any, scale: Tensor | None = None) -> Tensor:
        """Return the loss (0-d) of one run at x (n,), or at x scale."""
        views = self.layout.views(x if scale is None else x * scale)
        return self.problem.loss(dict(zip(self.names, views, strict=True)), batch)

    def losses_and_gradients(
        self, x: Tensor, batch: Any, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return losses (B,) and gradients (B, n) at x (B, n)."""
        both = vmap(
            grad_and_value(self.loss),
            in_dims=(0, 0, None if scale is None else 0),
            randomness="different",  # of dropout
        )
        gradients, losses = both(x, batch, scale)
        return losses, gradients
