"""Inner steps per second of meta-training, beside a loop over one problem at a time.

The loop is the released code's mechanism (`tests.reference.meta_training`): the full
graph, every inner gradient through the whole window; on MNIST it decodes all 30,000
images of its half for every run of 100 steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from datamodules import MNIST, ImageStreams, Quadratics, Streams
from lightning_ecd.rules import HNNRule, LSTMRule, UpdateRule
from lightning_ecd.unrolling import FlatProblem, Problem, truncated_gradient
from modules import MLP, Classification, Quadratic
from tests.benchmarks.loops import _Pil
from tests.benchmarks.timing import interleaved
from tests.reference import meta_training as slow

#: Images that the released loader decodes for a run, and the run's steps.
DECODED, STEPS = 30000, 100


class Case(NamedTuple):
    """A problem, a rule, and the runs that we take at once."""

    rule: Callable[[], UpdateRule]
    problem: Callable[[], Problem]
    data: Callable[[], Streams]
    window: int
    runs: int
    bar: float


def _mnist(runs: int, window: int) -> Streams:
    return ImageStreams(runs=runs, window=window, runs_per_epoch=1)


def _quadratics(runs: int, window: int) -> Streams:
    return Quadratics(runs=runs, window=window, runs_per_epoch=1)


_NETWORK = partial(Classification, partial(MLP, 784, [20], 10, "sigmoid"))
CASES = {
    "HNN, quadratics": Case(
        partial(HNNRule, norm=True), Quadratic, _quadratics, 15, 256, 20
    ),
    "LSTM, quadratics": Case(LSTMRule, Quadratic, _quadratics, 20, 256, 20),
    "HNN, MNIST": Case(partial(HNNRule, preproc=True), _NETWORK, _mnist, 15, 4, 5),
    "LSTM, MNIST": Case(partial(LSTMRule, preproc=True), _NETWORK, _mnist, 20, 2, 5),
}


def speedup(name: str, rounds: int = 3) -> float:
    """Return seconds per inner step of the loop over ours, decoding counted."""
    case = CASES[name]
    torch.manual_seed(0)
    rule, problem = case.rule(), FlatProblem(case.problem())
    data = case.data(case.runs, case.window)
    data.setup("fit")
    window = next(iter(data.train_dataloader()))
    like = torch.zeros(1)

    def ours() -> None:
        found = truncated_gradient(rule, problem, window, None, 0.01, like)
        assert all(g.isfinite().all() for g in found.gradients)

    loop = _loop(case, rule, problem, window)
    times = interleaved({"ours": ours, "loop": loop}, rounds=rounds)
    per_step = times["loop"] / case.window
    if isinstance(data, ImageStreams):
        per_step += _decoding() / STEPS
    return per_step / (times["ours"] / (case.window * case.runs))


def _loop(
    case: Case, rule: UpdateRule, problem: FlatProblem, window: Any
) -> Callable[[], None]:
    """Return a window of the released code's loop, on the first of our runs."""
    weights = {key: w.detach() for key, w in rule.named_parameters()}
    step: Callable[..., Any]
    theta = problem.starts(window.seed[0][:1], torch.zeros(1))[0]
    factor = 10.0 if rule.settings["preproc"] else None
    if isinstance(rule, HNNRule):
        norm = rule.settings["norm"]
        step = partial(
            slow.hnn_step, factor=factor, norm=norm, sizes=problem.layout.sizes
        )
        state: Any = torch.zeros_like(theta)
    else:
        step = partial(slow.lstm_step, factor=factor)
        state = tuple(theta.new_zeros(len(theta), 20) for _ in range(4))
    batches = [tuple(part[t, 0] for part in window.batch) for t in range(case.window)]

    def quadratic(theta: torch.Tensor, batch: Any) -> torch.Tensor:
        return (batch[0] @ theta - batch[1]).square().sum()

    inner = problem.problem

    def classification(theta: torch.Tensor, batch: Any) -> torch.Tensor:
        assert isinstance(inner, Classification)
        views = dict(zip(problem.names, problem.layout.views(theta), strict=True))
        outputs = functional_call(inner.network, views, (batch[0].flatten(1),))
        return cross_entropy(outputs, batch[1])

    loss = quadratic if isinstance(inner, Quadratic) else classification

    def run() -> None:
        slow.windows(
            step, weights, state, theta, loss, batches, case.window, 0.01, faithful=True
        )

    return run


def _decoding(some: int = 1000) -> float:
    """Return the seconds for decoding the images of one run, item by item."""
    images, labels = MNIST(val_size=0).whole("train")
    items = _Pil(images[:some, 0], labels[:some])

    def decode() -> None:
        for index in range(some):
            items[index]

    return interleaved({"pil": decode}, rounds=5)["pil"] * DECODED / some
