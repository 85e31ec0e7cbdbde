"""A row of the small LeNet's Hessian: ours beside HIPS autograd, the reference's way.

``python -m tests.benchmarks.curvature`` prints CPU seconds per row at batch 32.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_ecd.curvature import Loss
from modules import SmallLeNet
from tests.benchmarks.timing import interleaved

BATCH = 32
POOLS = ("folded", "neighbours")
#: Lowest ratio of HIPS autograd's row to ours.
BAR = 10.0
MISSING = "the reference's Hessian needs HIPS autograd: pip install autograd"
#: Rows that ours computes at once, on one graph.
ROWS = 32
#: Axes that turn a layer's torch weights into the reference's.
_SHAPES = ((1, 10, 5, 5), (1, 10, 1, 1), (10, 20, 5, 5), (1, 20, 1, 1)) + (
    (320, 128),
    (1, 128),
    (128, 10),
    (1, 10),
)


class HIPS:
    """The reference's network and loss in numpy, differentiated by HIPS autograd.

    Args:
        pool: "folded" or "neighbours".
        images: Shape (B, 1, 28, 28).
        labels: Shape (B,).
    """

    def __init__(self, pool: str, images: Tensor, labels: Tensor):
        try:
            import autograd.scipy.signal
            from autograd import grad, numpy
            from autograd.core import make_vjp
        except ImportError as error:
            raise ImportError(MISSING) from error
        self.np, self.convolve = numpy, autograd.scipy.signal.convolve
        self.pool, self.x = pool, images.double().numpy()
        self.hot = numpy.eye(10)[labels.numpy()]
        self.gradient, self.make_vjp = grad(self.loss), make_vjp

    def loss(self, w: Any) -> Any:
        """Return the mean cross-entropy at flat weights."""
        np, parts, at = self.np, [], 0
        for shape in _SHAPES:
            size = int(numpy.prod(shape))
            parts.append(np.reshape(w[at : at + size], shape))
            at += size
        z: Any = self.x
        for kernel, bias in (parts[0:2], parts[2:4]):
            axes = {"axes": ([2, 3], [2, 3]), "dot_axes": ([1], [0]), "mode": "valid"}
            z = self._pooled(np.maximum(self.convolve(z, kernel, **axes) + bias, 0))
        z = np.reshape(z, (len(z), -1))
        z = np.dot(np.maximum(np.dot(z, parts[4]) + parts[5], 0), parts[6]) + parts[7]
        top = np.max(z, axis=1, keepdims=True)
        z = z - top - np.log(np.sum(np.exp(z - top), axis=1, keepdims=True))
        return -np.sum(z * self.hot) / len(z)

    def _pooled(self, z: Any) -> Any:
        b, c, h, w = z.shape
        if self.pool == "folded":
            halves, axes = (b, c, 2, h // 2, 2, w // 2), (2, 3)
        else:
            halves, axes = (b, c, h // 2, 2, w // 2, 2), (3, 4)
        z = self.np.max(self.np.reshape(z, halves), axis=axes[0])
        return self.np.max(z, axis=axes[1])

    def rows(self, w: Any) -> Callable[[int], Any]:
        """Return a function of i that gives row i, on a graph that is kept."""
        vjp, _ = self.make_vjp(self.gradient, w)

        def row(i: int) -> Any:
            unit = numpy.zeros_like(w)
            unit[i] = 1.0
            return vjp(unit)

        return row


def as_reference(flat: Tensor) -> numpy.ndarray[Any, Any]:
    """Return torch's flat parameters, or a row, in the reference's order and layout.

    Its convolutions flip their kernels, and inputs come before outputs.
    """
    parts, at = [], 0
    for i, shape in enumerate(_SHAPES):
        size = int(numpy.prod(shape))
        part = flat[at : at + size]
        if len(shape) == 4 and i % 2 == 0:
            part = part.view(shape[1], shape[0], 5, 5).transpose(0, 1).flip(2, 3)
        elif i % 2 == 0:
            part = part.view(shape[1], shape[0]).T
        parts.append(part.reshape(-1))
        at += size
    return torch.cat(parts).double().numpy()


def case(pool: str) -> tuple[Loss, HIPS]:
    """Return the same loss twice, at the same weights."""
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, 28, 28, generator=draws)
    labels = torch.randint(10, (BATCH,), generator=draws)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallLeNet(pool)  # type: ignore[arg-type]
    ours = Loss(
        network,
        [(images, labels)],
        lambda batch: cross_entropy(network(batch[0]), batch[1]),
    )
    return ours, HIPS(pool, images, labels)


def seconds(pool: str, rounds: int = 7) -> dict[str, float]:
    """Return median CPU seconds per row, measured in turn, the graph included in ours.

    Raises:
        AssertionError: If the two disagree.
    """
    ours, theirs = case(pool)
    w = as_reference(ours.x)
    row = theirs.rows(w)
    n = ours.n
    last = torch.zeros(n).index_fill_(0, torch.tensor([n - 7]), 1.0)  # a bias
    expected = row(n - 7)
    found = as_reference(ours.hvp(last))
    assert numpy.abs(found - expected).max() < 1e-4 * numpy.abs(expected).max()
    units = torch.eye(ROWS, n)

    def rows(together: int) -> Callable[[], object]:
        def run() -> object:
            ours.together = together
            return ours.hvp(units)

        return run

    runs = {
        "HIPS autograd": lambda: row(0),
        "ours, vmapped": rows(ROWS),
        "ours, one by one": rows(1),
    }
    found = interleaved(runs, rounds=rounds, clock=time.process_time)
    return {k: v / (1 if k.startswith("HIPS") else ROWS) for k, v in found.items()}


def speedup(pool: str, rounds: int = 7) -> float:
    """Return HIPS autograd's time per row over that of vmapped double backward."""
    times = seconds(pool, rounds)
    return times["HIPS autograd"] / times["ours, vmapped"]


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    table = Table("row of the Hessian, batch 32", "CPU s", "HIPS / it", "bar", "met")
    for pool in POOLS:
        try:
            times = seconds(pool)
        except ImportError as error:
            raise SystemExit(str(error)) from error
        base = times["HIPS autograd"]
        for name, value in times.items():
            ratio = base / value
            bar, met = ("", "")
            if name == "ours, vmapped":
                bar, met = f">= {BAR:g}", "yes" if ratio >= BAR else "NO"
            table.add_row(f"{name}, {pool}", f"{value:.4f}", f"{ratio:.1f}", bar, met)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
