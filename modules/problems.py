"""Problems that update rules are trained and measured on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_ecd.checks import at_least
from lightning_ecd.randomness import mixed
from lightning_ecd.unrolling import Problem


class Quadratic(Problem):
    r"""The squared distance :math:`|W \theta - y|^2`, for `datamodules.Quadratics`.

    Args:
        dimensions: Of theta, at least 1.
        start: Every coordinate of the starting point.
    """

    def __init__(self, dimensions: int = 10, start: float = 0.0):
        at_least(1, dimensions=dimensions)
        self.dimensions, self.start = dimensions, start

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the starting point, the same for every seed."""
        return {"theta": torch.full((self.dimensions,), self.start)}

    def loss(self, params: dict[str, Tensor], batch: Any) -> Tensor:
        """Return the squared distance."""
        W, y = batch
        return (W @ params["theta"] - y).square().sum()


class Classification(Problem):
    """The mean cross-entropy of a network, drawn anew for every run.

    Args:
        network: Builds the network; in a config its class_path and init_args.
        flatten: Show it every sample as one vector.
    """

    def __init__(self, network: Callable[[], nn.Module], flatten: bool = True):
        self.make, self.flatten = network, flatten
        self.network = network()
        if any(True for _ in self.network.buffers()):
            raise ValueError(
                f"network must not have buffers, which {type(self.network).__name__} "
                "has: its running statistics would not be a function of parameters"
            )

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the parameters of a network built under this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(seed))
            network = self.make()
        return {name: p.detach() for name, p in network.named_parameters()}

    def loss(self, params: dict[str, Tensor], batch: Any) -> Tensor:
        """Return the mean cross-entropy of (samples, labels)."""
        x, labels = batch
        outputs = functional_call(
            self.network, params, (x.flatten(1) if self.flatten else x,)
        )
        return F.cross_entropy(outputs, labels)
