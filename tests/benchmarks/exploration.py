"""Cost of Entropy-SGD per gradient evaluation beside a training step with SGD."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lightning_ecd.optimizers import EntropySGD
from modules import MnistConv, MnistFC
from tests.benchmarks.timing import interleaved

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "mnistfc": MnistFC,
    "mnistconv": MnistConv,
}
#: Gradient evaluations of a step.
L = 5
BASE = "SGD foreach"
#: Bars: noise -> highest ratio, on mnistfc.
BARS = {0.0: 1.05, 1e-4: 1.25}


def step_of(network: str, noise: float | None) -> Callable[[], Any]:
    """Return L training steps with SGD, or one of Entropy-SGD, on a batch of 128."""
    torch.manual_seed(0)
    net = NETWORKS[network]()
    x, y = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    optimizer: Any
    if noise is None:
        settings: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "foreach": True}
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, **settings)
    else:
        optimizer = EntropySGD(
            net.parameters(), inner_steps=L, inner_lr=1e-3, noise=noise
        )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        loss.item()
        return loss

    def several() -> None:
        for _ in range(L):
            optimizer.step(closure)

    return several if noise is None else lambda: optimizer.step(closure)


def ratios(network: str, rounds: int = 21) -> dict[float, float]:
    """Return noise -> time per evaluation over that of a step with SGD."""
    runs = {BASE: step_of(network, None)}
    runs |= {f"{noise}": step_of(network, noise) for noise in BARS}
    times = interleaved(runs, rounds=rounds)
    return {noise: times[f"{noise}"] / times[BASE] for noise in BARS}
