"""Cost of descent in random bases: the step, beside naive products and beside SGD.

On the fully connected network of 101,770 parameters, d = 250, batches of 32. Run as a
program with the name of a basis, it prints the memory of one step.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_ecd.optimizers import FPD, RBD
from tests.benchmarks.memory import resident
from tests.benchmarks.timing import interleaved

DIMENSIONS, BATCH = 250, 32
BASE, NAIVE = "SGD foreach", "randn and two products"
BASES = ("in_law", "orthonormal_in_law", "srht", "countsketch", "rademacher", "normal")
#: Bars: milliseconds of a step alone.
STEP_BARS = {"in_law": 0.8, "srht": 1.5, "countsketch": 1.5}
#: Bars: a step alone over the naive products.
NAIVE_BARS = {"rademacher": 0.1, "normal": 1.0}
#: Bar: a training step with in_law over one with SGD.
WHOLE_BAR = 3.0
#: Parameters and directions where memory is measured.
MANY, FEW = 2**23, 8
#: Bars: vectors of all parameters. "uniform" makes rows in chunks, here all at once.
MEMORY_BARS = dict.fromkeys(BASES, 3.0) | {"uniform": 3.0 + FEW}


def fully_connected() -> nn.Sequential:
    """Return the network; without Lightning, a fresh process is there at once."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def optimizer_of(name: str, params: Iterator[nn.Parameter]) -> Any:
    """Return the optimizer of a basis, or one of `BASE` and "FPD"."""
    if name == BASE:
        return torch.optim.SGD(params, lr=0.1, foreach=True)
    if name == "FPD":
        return FPD(params, dimensions=DIMENSIONS)
    return RBD(params, dimensions=DIMENSIONS, basis=name)  # type: ignore[arg-type]


def step_of(name: str) -> Callable[[], object]:
    """Return a step alone, on fixed gradients."""
    network = fully_connected()
    optimizer = optimizer_of(name, network.parameters())
    for p in network.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    loss = torch.tensor(2.3)
    return lambda: optimizer.step(lambda: loss)


def training_step_of(name: str) -> Callable[[], object]:
    """Return a training step: forward, backward and the optimizer's."""
    network = fully_connected()
    optimizer = optimizer_of(name, network.parameters())
    x, y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(network(x), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def naive() -> None:
    """Draw a basis, project on it and expand in it."""
    n = 784 * 128 + 128 + 1290
    rows = torch.randn(DIMENSIONS, n)
    coordinates = rows @ torch.ones(n)
    rows.T @ coordinates


def steps(rounds: int = 21) -> dict[str, float]:
    """Return the median seconds of steps alone and of the naive products.

    The fast ones among themselves: naive products drive all else out of the cache.
    """
    torch.manual_seed(0)
    slow = ("rademacher", "normal", "FPD")
    fast = {name: step_of(name) for name in (BASE, *BASES) if name not in slow}
    others = {name: step_of(name) for name in slow}
    times = interleaved(fast, rounds=rounds, inner=20)
    return times | interleaved({**others, NAIVE: naive}, rounds=rounds)


def training_steps(rounds: int = 201) -> dict[str, float]:
    """Return the median seconds of training steps with SGD and with in_law."""
    torch.manual_seed(0)
    names = (BASE, "in_law", "orthonormal_in_law")
    return interleaved({name: training_step_of(name) for name in names}, rounds=rounds)


def memory(basis: str) -> float:
    """Return the most memory a step takes, in vectors of all parameters."""
    command = [sys.executable, "-m", "tests.benchmarks.bases", basis]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def _memory(basis: str) -> float:
    torch.set_num_threads(1)
    small = optimizer_of(basis, fully_connected().parameters())
    small.step(lambda: torch.tensor(0.0))  # loads libraries
    p = nn.Parameter(torch.zeros(MANY))
    p.grad = torch.ones(MANY)
    optimizer = RBD([p], dimensions=FEW, basis=basis)  # type: ignore[arg-type]
    before = resident("VmRSS")
    optimizer.step(lambda: torch.tensor(0.0))
    return (resident("VmHWM") - before) / (4 * MANY)


if __name__ == "__main__":
    print(_memory(sys.argv[1]))
