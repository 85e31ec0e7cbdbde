"""The forward Laplacian beside nested autograd: time, and memory of a PINN step."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datamodules import Collocation
from lightning_ecd.laplacian import laplacian
from lightning_ecd.optimizers import BBI
from modules import MLP, PINN, Poisson, ResidualMLP
from tests.benchmarks.memory import resident
from tests.benchmarks.timing import interleaved
from tests.reference.poisson import nested


class Case(NamedTuple):
    """A network and its number of points; the lowest ratio, and rounds of timing."""

    network: Callable[[], nn.Module]
    inputs: int
    points: int
    bar: float
    rounds: int


CASES = {
    "4x128 tanh, D=10, batch 1024": Case(
        lambda: MLP(10, [128] * 4), 10, 1024, 1.8, rounds=15
    ),
    "4x128 tanh, D=100, batch 1024": Case(
        lambda: MLP(100, [128] * 4), 100, 1024, 3.5, rounds=5
    ),
    "Poisson on the disc, 121,401 parameters, 11,000 points": Case(
        lambda: ResidualMLP(2, 200, 3), 2, 11000, 1.5, rounds=7
    ),
}
#: Highest memory of a full-size step, GiB above the process with its imports.
MEMORY_BAR = 1.0


def speedup(name: str, rounds: int | None = None) -> float:
    """Return the time of the nested loop over ours, value and parameter gradient.

    Both end in ``loss.backward()``, as in a training step.
    """
    case = CASES[name]
    torch.manual_seed(0)
    network = case.network()
    x = torch.rand(case.points, case.inputs) * 2 - 1

    def step(derivatives: Callable[[], tuple[Tensor, Tensor]]) -> list[Tensor]:
        network.zero_grad()
        u, bend = derivatives()
        (-bend + u * u - 1).square().mean().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    def ours() -> tuple[Tensor, Tensor]:
        found = laplacian(network, x)
        return found.value[:, 0], found.laplacian[:, 0]

    def theirs() -> tuple[Tensor, Tensor]:
        u, _, bend = nested(network, x)
        return u, bend

    for one, other in zip(step(ours), step(theirs), strict=True):
        assert torch.allclose(
            one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())
        )
    times = interleaved(
        {"ours": partial(step, ours), "theirs": partial(step, theirs)},
        rounds=rounds or case.rounds,
    )
    return times["theirs"] / times["ours"]


def peak_memory() -> float:
    """Return the memory of full-size steps, measured in a process of its own, GiB."""
    command = [sys.executable, "-m", "tests.benchmarks.laplacian"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def _steps(count: int = 3) -> float:
    """Make steps of the disc problem; return the peak memory above the start, GiB."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    network = partial(ResidualMLP, 2, 200, 3)
    task = PINN(network, Poisson, partial(BBI, lr=8e-6), feature="l2")
    batch = Collocation().points()
    optimizer = task.make_optimizer(task.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(batch)
        loss.backward()
        return loss.detach()

    for _ in range(count):
        optimizer.step(closure)
    return (resident("VmHWM") - before) / 2**30


if __name__ == "__main__":
    print(_steps())
