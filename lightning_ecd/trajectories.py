"""Thousands of runs of one optimizer on a synthetic function, all at once.

The runs are the rows of one parameter whose columns are contiguous in memory; the
optimizer's own update moves them all, its numbers being columns. A run that has ended
leaves the batch, so that the rest goes on faster.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_ecd.errors import UserError
from lightning_ecd.functions import Function
from lightning_ecd.optimizers import Descent, traits_of
from lightning_ecd.randomness import mixed

#: Told how many run-steps are done out of how many at most.
Progress = Callable[[int, int], None]

#: Ended runs leave when they are this part of the batch: leaving costs a copy.
_LEAVE = 0.1


@dataclass
class History:
    """The way of the first runs, at most so many points of each.

    Attributes:
        points: Most points kept of a run; beyond, every other one is dropped.
        steps: Step of every point, length T.
        values: F there, shape (T, K) for K runs; nan after a run's end.
        places: Where, shape (T, K, n).
    """

    points: int
    steps: list[int] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    every: int = 1

    def due(self, step: int) -> bool:
        """Return whether to keep the point of a step."""
        return step % self.every == 0

    def add(self, step: int, value: Tensor, x: Tensor) -> None:
        """Keep F (K,) and the places (K, n) of a step."""
        self.steps.append(step)
        self.values.append(value.detach().to("cpu", torch.float64, copy=True))
        self.places.append(x.detach().to("cpu", torch.float64, copy=True))
        if len(self.steps) > self.points:
            self.every *= 2
            kept = [i for i, at in enumerate(self.steps) if at % self.every == 0]
            self.steps = [self.steps[i] for i in kept]
            self.values = [self.values[i] for i in kept]
            self.places = [self.places[i] for i in kept]


@dataclass
class Outcome:
    """What became of R runs.

    Attributes:
        best: Lowest F seen, shape (R,).
        best_point: Where, shape (R, n).
        best_step: When, shape (R,).
        last: F at the end, shape (R,).
        last_point: Where a run ended, shape (R, n).
        steps: Steps that a run took, shape (R,).
        basin: The basin that it ended in, 0 for none, shape (R,).
        reached: Whether it reached the target, shape (R,).
        history: The way of the first runs.
    """

    best: Tensor
    best_point: Tensor
    best_step: Tensor
    last: Tensor
    last_point: Tensor
    steps: Tensor
    basin: Tensor
    reached: Tensor
    history: History


def run(
    function: Function,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    starts: Tensor,
    steps: int,
    *,
    target: float | None = None,
    stop_in_basin: bool = False,
    record: int = 0,
    points: int = 1000,
    chunk: int = 20000,
    seed: int = 0,
    autograd: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Let every start descend; runs know nothing of one another.

    Args:
        function: What to minimize.
        make_optimizer: Builds the optimizer for a list of parameters.
        starts: Shape (R, n); dtype and device are those of the computation.
        steps: The most steps of a run; bounces count.
        target: A run ends when F falls below it.
        stop_in_basin: A run ends in a basin of the function (`function.basin`).
        record: The first so many runs are recorded.
        points: The most points of the record.
        chunk: The most runs at once; memory is proportional to it.
        seed: Of the optimizer's draws, together with the chunk's number.
        autograd: Differentiate the function instead of using its closed gradient:
            slower, and other digits in float32.
        progress: Told of the run-steps done.

    Returns:
        The outcome of every run, on the CPU.

    Raises:
        UserError: If the optimizer cannot treat rows apart, or the function has no
            basins to stop in.
    """
    if stop_in_basin and not hasattr(function, "basin"):
        raise UserError(
            f"stop_in_basin: {type(function).__name__} has no basins; set it to false"
        )
    parts, history = [], History(points)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the operations are too small to be shared
    try:
        for number, part in enumerate(starts.split(chunk)):
            swarm = _Swarm(
                function, make_optimizer, part, mixed(seed, number), autograd
            )
            kept = record if number == 0 else 0

            def told(now: int, before: int = number * chunk * steps) -> None:
                if progress is not None:
                    progress(before + now, len(starts) * steps)

            swarm.descend(
                steps, target, stop_in_basin, min(kept, len(part)), history, told
            )
            parts.append(swarm.result)
    finally:
        torch.set_num_threads(threads)
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Outcome(**whole, history=history)


class _Swarm:
    """One chunk of runs.

    Args:
        function: What to minimize.
        make_optimizer: Builds the optimizer.
        starts: Shape (R, n).
        seed: Of the optimizer's draws.
        autograd: Whether to differentiate by autograd.
    """

    def __init__(
        self,
        function: Function,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        starts: Tensor,
        seed: int,
        autograd: bool,
    ):
        self.function = function
        self.evaluate = function.value_and_gradient
        if autograd:
            self.evaluate = partial(Function.value_and_gradient, function)
        self.x = nn.Parameter(starts.T.contiguous().T)
        self.optimizer = make_optimizer([self.x])
        name, traits = type(self.optimizer).__name__, traits_of(type(self.optimizer))
        if not traits.rows:
            raise UserError(
                f"{name} mixes the rows of a parameter, so that it cannot take many "
                "runs at once; `fit` a modules.FunctionTask instead"
            )
        for group in self.optimizer.param_groups:
            if "seed" in group:
                group["seed"] = mixed(seed, group["seed"])
        if isinstance(self.optimizer, Descent):
            self.optimizer.rows = len(starts)
        R, n = starts.shape
        self.run = torch.arange(R, device=starts.device)  # the run of every row
        self.best = torch.full(
            (R,), torch.inf, dtype=starts.dtype, device=self.x.device
        )
        self.best_point = self.x.detach().clone()
        self.best_step = torch.zeros_like(self.run)
        cpu = torch.zeros(R, dtype=torch.int64)
        self.result: dict[str, Tensor] = {
            "best": torch.full((R,), torch.inf, dtype=torch.float64),
            "best_point": torch.zeros(R, n, dtype=torch.float64),
            "best_step": cpu.clone(),
            "last": torch.full((R,), torch.nan, dtype=torch.float64),
            "last_point": torch.zeros(R, n, dtype=torch.float64),
            "steps": cpu.clone(),
            "basin": cpu.clone(),
            "reached": cpu.bool(),
        }

    def descend(
        self,
        steps: int,
        target: float | None,
        stop_in_basin: bool,
        record: int,
        history: History,
        told: Callable[[int], None],
    ) -> None:
        """Take the steps; write what became of the runs into `result`."""
        ended = torch.zeros_like(self.run, dtype=torch.bool)
        for step in range(steps + 1):
            x = self.x.detach()
            value, gradient = self.evaluate(x)
            self._remember_best(x, value, step)
            if record and history.due(step):
                rows = ((self.run < record) & ~ended).nonzero()[:, 0]
                if len(rows):
                    history.add(step, *self._first_runs(record, rows, x, value))
                else:  # all recorded runs have ended: their points shall stay dense
                    record = 0

            stop = torch.ones_like(ended) if step == steps else None
            basin, reached = torch.zeros_like(self.run), torch.zeros_like(ended)
            if stop_in_basin:
                basin = self.function.basin(x)  # type: ignore[attr-defined]
                stop = basin > 0 if stop is None else stop
            if target is not None:
                reached = value < target
                stop = reached if stop is None else stop | reached
            if stop is not None and (stop := stop & ~ended).any():
                self._write(stop, x, value, step, basin, reached)
                ended = ended | stop
                gone = int(ended.sum())
                if gone == len(ended):
                    break
                if gone > _LEAVE * len(ended):
                    gradient, value = self._leave(ended, gradient, value)
                    ended = ended[~ended]
            if step % 64 == 0:
                told(step * len(self.result["steps"]))
            self.x.grad = gradient
            self.optimizer.step(lambda value=value: value)  # type: ignore[misc]
        told(steps * len(self.result["steps"]))

    def _remember_best(self, x: Tensor, value: Tensor, step: int) -> None:
        better = value < self.best
        self.best = torch.where(better, value, self.best)
        self.best_point = torch.where(better.unsqueeze(-1), x, self.best_point)
        self.best_step = self.best_step.masked_fill(better, step)

    def _first_runs(
        self, record: int, rows: Tensor, x: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return F and places of the recorded runs, nan where a run has ended."""
        values = x.new_full((record,), torch.nan)
        places = x.new_full((record, x.shape[1]), torch.nan)
        values[self.run[rows]], places[self.run[rows]] = value[rows], x[rows]
        return values, places

    def _write(
        self,
        stop: Tensor,
        x: Tensor,
        value: Tensor,
        step: int,
        basin: Tensor,
        reached: Tensor,
    ) -> None:
        """Write the outcome of the rows that stop."""
        runs = self.run[stop].cpu()
        outcome = {
            "best": self.best,
            "best_point": self.best_point,
            "best_step": self.best_step,
            "last": value,
            "last_point": x,
            "steps": torch.full_like(self.run, step),
            "basin": basin,
            "reached": reached,
        }
        for name, column in outcome.items():
            kept = self.result[name]
            kept[runs] = column[stop].to(kept)

    def _leave(
        self, ended: Tensor, gradient: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Drop the rows that ended, here and in the optimizer."""
        stay = ~ended
        rows = len(stay)

        def columns(v: Tensor) -> Tensor:
            return v.T[:, stay].contiguous().T

        optimizer = self.optimizer
        for name, v in optimizer.state[self.x].items():
            if isinstance(optimizer, Descent):  # row by row, as in a checkpoint
                by_row = optimizer.flat.to_contiguous(v).view(rows, -1, *v.shape[1:])
                optimizer.vectors[name] = by_row[stay].flatten(0, 1)
            elif v.shape == self.x.shape:
                optimizer.state[self.x][name] = columns(v)
        self.x.grad = None
        self.x.data = columns(self.x.data)
        if isinstance(optimizer, Descent):
            system = optimizer.system
            for name, number in system.items():
                if isinstance(number, Tensor):
                    system[name] = number[stay]
            optimizer.rows = int(stay.sum())
            optimizer._flat = None
        self.run, self.best = self.run[stay], self.best[stay]
        self.best_point = columns(self.best_point)
        self.best_step = self.best_step[stay]
        return columns(gradient), value[stay]
