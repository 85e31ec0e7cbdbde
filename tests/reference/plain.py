"""Heavy-ball momentum once more, one tensor at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class HeavyBall:
    """p <- momentum p + g + w_d x; x <- x - lr p, tensor by tensor.

    Args:
        groups: One list of tensors per group.
        settings: ``lr``, ``momentum``, ``weight_decay`` of every group.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], settings: Sequence[dict]):
        self.groups, self.settings = groups, settings
        self.momenta = [[torch.zeros_like(x) for x in group] for group in groups]

    def step(self, evaluate: Callable[[], tuple[float, list[Tensor]]]) -> float:
        """Take one step; `evaluate` returns the loss and one gradient per tensor."""
        loss, grads = evaluate()
        left = iter(grads)
        for tensors, momenta, s in zip(
            self.groups, self.momenta, self.settings, strict=True
        ):
            for i, x in enumerate(tensors):
                force = next(left) + s.get("weight_decay", 0.0) * x
                momenta[i] = s["momentum"] * momenta[i] + force
                x.sub_(s["lr"] * momenta[i])
        return loss
