"""Cost of the passes over memory beside a step of torch's SGD with momentum.

``python -m tests.benchmarks.kernels`` prints the table: one thread, medians of
interleaved timings, the sequences of passes that an update makes.
"""

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_ecd.kernels import Body, Eager, body_of
from tests.benchmarks import steps
from tests.benchmarks.timing import interleaved

NETWORKS = ("LeNet 201,528", "ResNet-18 62 tensors")
#: Bars: passes and network -> highest ratio to `steps.BASE`.
BARS = {
    ("BBI", "LeNet 201,528"): 0.4,
    ("ECDSep nu=0", "LeNet 201,528"): 0.5,
    ("BBI", "ResNet-18 62 tensors"): 0.6,
    ("ECDSep nu=0", "ResNet-18 62 tensors"): 0.75,
    ("ECDSep nu>0", "ResNet-18 62 tensors"): 2.5,
}


def passes(body: Body, n: int) -> dict[str, Callable[[], Any]]:
    """Return what an update of each optimizer does to vectors of `n` entries."""
    draws = torch.Generator().manual_seed(0)
    q, g, x = torch.randn(3, n, generator=draws)
    r, k, d, turn = 0.999, 1e-3, 1e-4, 1e-5

    def kick_and_drift() -> None:
        body.kick(q, g, x, r, k, 0.0)
        body.drift(q, x, d)

    def kick_and_turn() -> None:
        body.kick(q, g, x, r, k, 0.0)
        body.drift_turn(q, x, d, turn, 0, 1, 0)

    return {
        "BBI": lambda: body.kick_drift(q, g, x, r, k, 0.0, d),
        "ECDSep nu=0": kick_and_drift,
        "ECDSep nu>0": kick_and_turn,
    }


def ratios(network: str, rounds: int = 101) -> dict[tuple[str, str], float]:
    """Return median times, by body and passes, over that of SGD foreach."""
    n = sum(p.numel() for p in steps.NETWORKS[network][0]().parameters())
    bodies = (Eager(), body_of(torch.empty(0)))
    runs = {("", steps.BASE): steps.step_of(steps.BASE, network)}
    for body in bodies:
        for name, run in passes(body, n).items():
            runs[type(body).__name__, name] = run
    inner = steps.NETWORKS[network][1]
    times = interleaved(runs, rounds=rounds, inner=inner)
    base = times.pop(("", steps.BASE))
    return {name: seconds / base for name, seconds in times.items()}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = Table("passes, one thread, over SGD foreach", "body", "ratio", "bar", "met")
    for network in NETWORKS:
        for (body, name), ratio in ratios(network).items():
            bar = BARS.get((name, network)) if body == "Compiled" else None
            verdict = "" if bar is None else "yes" if ratio <= bar else "NO"
            limit = "" if bar is None else f"<= {bar}"
            table.add_row(f"{name}, {network}", body, f"{ratio:.3f}", limit, verdict)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
