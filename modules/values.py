"""Losses and gradients at many points at once: what `step(value=...)` hands over."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, jvp, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from lightning_ecd.optimizers import Descent

#: Points whose activations are in memory at once.
_TOGETHER = 16


class Values:
    """The loss of a task at other parameters than its own.

    Rows are evaluated by vmap where that is faster: everywhere but for convolutions on
    a CPU (there 1.3 to 2.4 times slower) and for recurrent networks. Running
    statistics do not move.

    Args:
        task: A `Task`, whose loss; its `batch` is the one to evaluate on.
        optimizer: Whose vectors the points are laid out as.
    """

    def __init__(self, task: Any, optimizer: Descent):
        self.task, self.optimizer = task, optimizer
        self._holder, modules = _Holder(task), list(task.modules())
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in modules)
        self._convolves = any(isinstance(part, _ConvNd) for part in modules)
        self._moves = any(map(_moves, modules))

    @property
    def stateless(self) -> bool:
        """Whether the closure, too, moves no running state of the network."""
        return not self._recurrent and not self._moves

    def __call__(
        self,
        points: Tensor,
        gradients: bool = False,
        parts: Sequence[int] | None = None,
        draws: int | None = None,
    ) -> Any:
        """Return losses (P,), with `gradients` also these, (P, n).

        Args:
            points: Shape (P, n).
            gradients: Whether gradients are wanted.
            parts: The mini-batch of every point, modulo their number; default: point
                i on mini-batch i.
            draws: Seed of dropout and the like, the same for all points; None: each
                point has its own.
        """
        count = self.task.minibatches or 1
        chosen = [i % count for i in (range(len(points)) if parts is None else parts)]
        points, size = points.contiguous(), self._size()
        losses = points.new_empty(len(points))
        found = torch.empty_like(points) if gradients else None
        with still_statistics(self.task), self._context():
            for start in range(0, len(points), size):
                rows = slice(start, start + size)
                own = None if found is None else found[rows]
                with common_draws(draws, points):
                    losses[rows] = self._some(points[rows], own, chosen[rows], draws)
        samples = self.task.batch_size(self.task.batch) // count
        self.task.count(len(points), len(points) * samples)
        return losses if found is None else (losses, found)

    def _some(
        self,
        points: Tensor,
        gradients: Tensor | None,
        parts: Sequence[int],
        draws: int | None,
    ) -> Tensor:
        """Return the losses of some points; fill in their gradients."""
        batches = [self.task.part(self.task.batch, i) for i in parts]
        flat = self.optimizer.flat
        function: Callable[..., Any] = self._loss
        if gradients is not None:
            function = grad_and_value(self._loss)
        if len(points) == 1:
            parameters = self._named([v[0] for v in flat.stacked(points)])
            found = function(parameters, batches[0])
            found = tree_map(lambda leaf: leaf[None], found)
        else:
            same = len(set(parts)) == 1
            batch = batches[0] if same else tree_map(_stacked, *batches)
            parameters = self._named(flat.stacked(points))
            dims = (0, None if same else 0)
            law = "different" if draws is None else "same"
            found = vmap(function, in_dims=dims, randomness=law)(parameters, batch)
        if gradients is None:
            return found
        slopes, losses = found
        for name, view in self._named(flat.stacked(gradients)).items():
            view.copy_(slopes[name])
        return losses

    def slopes(self, directions: Tensor, draws: int) -> Tensor:
        """Return derivatives of the loss along the rows of `directions`, (P,).

        Args:
            directions: Shape (P, n).
            draws: Seed of dropout and the like, the same for all directions.
        """
        flat = self.optimizer.flat
        batch = self.task.part(self.task.batch, 0)
        here = self._named(flat.views(flat.x))

        def slope(tangents: dict[str, Tensor]) -> Tensor:
            return jvp(lambda p: self._loss(p, batch), (here,), (tangents,))[1]

        losses = directions.new_empty(len(directions))
        size = self._size()
        with (
            warnings.catch_warnings(),
            still_statistics(self.task),
            self._context(),
        ):
            # of torch itself, when it first differentiates forward
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            for start in range(0, len(directions), size):
                some = directions[start : start + size]
                with common_draws(draws, some):
                    if len(some) == 1:
                        tangents = self._named([v[0] for v in flat.stacked(some)])
                        losses[start] = slope(tangents)
                    else:
                        tangents = self._named(flat.stacked(some))
                        found = vmap(slope, randomness="same")(tangents)
                        losses[start : start + size] = found
        self.task.count(len(directions), len(directions) * self.task.batch_size(batch))
        return losses

    def _size(self) -> int:
        """Return how many points are evaluated at once."""
        convolves = self._convolves and self.optimizer.flat.host
        return 1 if self._recurrent or convolves else _TOGETHER

    def _named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        names = {id(p): f"task.{name}" for name, p in self.task.named_parameters()}
        trainable = self.optimizer.flat.trainable
        return {names[id(p)]: v for p, v in zip(trainable, tensors, strict=True)}

    def _loss(self, parameters: dict[str, Tensor], batch: Any) -> Tensor:
        return functional_call(self._holder, parameters, (batch,))

    def _context(self) -> Any:
        return self.task.trainer.precision_plugin.forward_context()


class _Holder(nn.Module):
    """A module whose call is a task's loss."""

    def __init__(self, task: Any):
        super().__init__()
        self.task = task

    def forward(self, batch: Any) -> Tensor:
        return self.task.loss(batch)


def _moves(part: nn.Module) -> bool:
    """Return whether training moves running statistics of a layer."""
    return isinstance(part, _BatchNorm) and part.track_running_stats


def _stacked(*leaves: Any) -> Any:
    return torch.stack(leaves) if torch.is_tensor(leaves[0]) else leaves[0]


@contextmanager
def still_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalize by the batch without moving its running statistics."""
    moving: list[Any] = [part for part in module.modules() if _moves(part)]
    for part in moving:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in moving:
            part.track_running_stats = True


@contextmanager
def common_draws(seed: int | None, like: Tensor) -> Iterator[None]:
    """Draw from a seed, and leave torch's generators where they were; None: do not."""
    if seed is None:
        yield
        return
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
