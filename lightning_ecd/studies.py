"""The command `trajectories`: many runs of optimizers on a synthetic function."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lightning_ecd.callbacks.hparams import flattened
from lightning_ecd.checks import at_least
from lightning_ecd.functions import Function
from lightning_ecd.parser import LOGS, Command, new_folder, told_in_a_line
from lightning_ecd.randomness import generator
from lightning_ecd.trajectories import Outcome, run

#: Separates the starting points from every other use of the seed.
_STARTS = 0x5747


class Study:
    """Runs of one or several optimizers from the same starting points.

    Args:
        function: What to minimize, of `lightning_ecd.functions`.
        optimizers: Name -> optimizer (class_path and init_args); all start from the
            same points.
        steps: The most optimizer steps of a run; a bounce is a step.
        start: Where to start; default: the function's own start.
        random_starts: Number of starts uniform in `box` instead of `start`; 0: none.
        box: Lowest and highest coordinate of random starts; default: the function's.
        runs: Runs from every start; they differ by the optimizer's draws.
        target: A run that gets below it succeeds, and ends.
        stop_in_basin: A run ends in a basin of the function; their ratio is reported.
        seed: Of starts and draws.
        dtype: "float64" or "float32".
        autograd: Differentiate the function instead of using its closed gradient:
            slower, and the digits of a published float32 run.
        device: Where to compute: "cpu", "cuda", ...
        record: Recorded runs per optimizer, drawn in the figures.
        points: The most points kept of a recorded run.
        chunk: The most runs at once; memory is proportional to it.
        published_ratio: The paper's basin ratio, drawn beside ours.
    """

    def __init__(
        self,
        function: Function,
        optimizers: dict[str, OptimizerCallable],
        steps: int,
        start: list[float] | None = None,
        random_starts: int = 0,
        box: tuple[float, float] | None = None,
        runs: int = 1,
        target: float | None = None,
        stop_in_basin: bool = False,
        seed: int = 0,
        dtype: Literal["float64", "float32"] = "float64",
        autograd: bool = False,
        device: str = "cpu",
        record: int = 10,
        points: int = 1000,
        chunk: int = 20000,
        published_ratio: float | None = None,
    ):
        at_least(1, steps=steps, runs=runs, points=points, chunk=chunk)
        at_least(0, random_starts=random_starts, record=record)
        if start is not None and len(start) != function.dimension:
            raise ValueError(
                f"start must have {function.dimension} coordinates, got {len(start)}"
            )
        if start is not None and random_starts:
            raise ValueError("start and random_starts exclude each other")
        low, high = box or function.box
        if not low < high:
            raise ValueError(f"box must be (lowest, highest), got {box}")
        if not optimizers:
            raise ValueError("optimizers must name at least one")
        self.function, self.optimizers, self.steps = function, optimizers, steps
        self.start, self.random_starts = start, random_starts
        self.box, self.runs, self.target = (low, high), runs, target
        self.stop_in_basin, self.seed = stop_in_basin, seed
        self.dtype, self.device = getattr(torch, dtype), device
        self.record, self.points, self.chunk = record, points, chunk
        self.published_ratio, self.autograd = published_ratio, autograd

    def starts(self) -> Tensor:
        """Return the starting points (starts x runs, n), the runs of one together."""
        n = self.function.dimension
        if self.random_starts:
            draws = generator(self.seed, _STARTS)
            unit = torch.rand(
                self.random_starts, n, generator=draws, dtype=torch.float64
            )
            points = self.box[0] + (self.box[1] - self.box[0]) * unit
        else:
            points = torch.tensor([self.start or self.function.start]).double()
        points = points.repeat_interleave(self.runs, 0)
        return points.to(self.device, self.dtype)

    def run(
        self, progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, Outcome]:
        """Return the outcome of every optimizer.

        Args:
            progress: Told the optimizer's name and the run-steps done, of how many.
        """
        outcomes = {}
        for name, make in self.optimizers.items():

            def told(done: int, total: int, name: str = name) -> None:
                if progress is not None:
                    progress(name, done, total)

            outcomes[name] = run(
                self.function,
                make,
                self.starts(),
                self.steps,
                target=self.target,
                stop_in_basin=self.stop_in_basin,
                record=self.record,
                points=self.points,
                chunk=self.chunk,
                seed=self.seed,
                autograd=self.autograd,
                progress=told,
            )
        return outcomes

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """Return the numbers that a paper would print.

        ``success`` is the share of starts of which some run reached the target,
        ``success_error`` its binomial standard error; ``ratio`` that of the runs that
        ended in basin 1 to those in basin 2, ``ratio_error`` = ratio (1/n1 + 1/n2)^½.
        """
        best = outcome.best.double()
        found = best[best.isfinite()]
        numbers: dict[str, float] = {
            "runs": len(best),
            "steps": outcome.steps.double().mean().item(),
            "best": found.min().item() if len(found) else math.inf,
            "best_mean": best.mean().item(),
            "best_median": best.median().item(),
            "best_step": outcome.best_step[best.argmin()].item(),
            "last_median": outcome.last.median().item(),
        }
        if self.target is not None:
            reached = outcome.reached
            of_starts = reached.view(-1, self.runs).any(1).double()
            share = of_starts.mean().item()
            numbers |= {
                "success": share,
                "success_error": (share * (1 - share) / len(of_starts)) ** 0.5,
                "success_of_a_run": reached.double().mean().item(),
            }
            if reached.any():
                to_target = outcome.steps[reached].double()
                numbers["steps_to_target"] = to_target.median().item()
        if self.stop_in_basin:
            one, two = (int((outcome.basin == i).sum()) for i in (1, 2))
            numbers |= {"basin_1": one, "basin_2": two}
            if one and two:
                numbers["ratio"] = one / two
                numbers["ratio_error"] = one / two * (1 / one + 1 / two) ** 0.5
                numbers["ideal_ratio"] = self.function.ideal_ratio  # type: ignore
        return numbers


def figures(study: Study, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Return name -> figure of what a study showed."""
    from lightning_ecd import figures as draw  # matplotlib costs a second

    drawn: dict[str, Any] = {}
    losses, distances = {}, {}
    function = study.function
    for name, outcome in outcomes.items():
        history = outcome.history
        if not history.steps:
            continue
        places = torch.stack(history.places, 1)  # (K, T, n)
        losses[name] = history.steps, torch.stack(history.values)[:, 0].tolist()
        if function.minimizers:
            distances[name] = history.steps, function.distance(places[0]).tolist()
        if function.dimension == 2:
            ways = {f"run {i + 1}": way.numpy() for i, way in enumerate(places)}
            drawn[f"surface_{name}"] = draw.surface(function, ways)
        if study.stop_in_basin:
            one, two = ((outcome.basin == i).cumsum(0).numpy() for i in (1, 2))
            ideal = function.ideal_ratio  # type: ignore[attr-defined]
            drawn[f"ratio_{name}"] = draw.running_ratio(
                one, two, ideal, study.published_ratio
            )
    if losses:
        drawn["curves"] = draw.curves(losses, distances or None)
    return drawn


def write(
    folder: Path, study: Study, outcomes: dict[str, Outcome], settings: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Write tables, figures and TensorBoard's records; return the summaries.

    Args:
        folder: Of the run.
        study: What was run.
        outcomes: What came of it.
        settings: What TensorBoard's hyper-parameter tab shows.
    """
    summaries = {name: study.summary(o) for name, o in outcomes.items()}
    (folder / "summary.json").write_text(json.dumps(summaries, indent=2) + "\n")
    for name, outcome in outcomes.items():
        _write_runs(folder / f"runs_{name}.csv", outcome)
    with SummaryWriter(str(folder)) as board:
        for name, outcome in outcomes.items():
            for step, values in zip(
                outcome.history.steps, outcome.history.values, strict=True
            ):
                median = statistics.median(values[values.isfinite()].tolist() or [0.0])
                board.add_scalar(f"{name}/median_loss", median, step)
            if study.stop_in_basin:
                _board_ratio(board, name, outcome)
        for name, figure in figures(study, outcomes).items():
            figure.savefig(folder / f"{name}.png", dpi=120)
            board.add_figure(name, figure)
        shown = {
            f"{name}/{key}": value
            for name, numbers in summaries.items()
            for key, value in numbers.items()
        }
        for record in hparams(flattened(settings), dict.fromkeys(shown, 0.0)):
            board._get_file_writer().add_summary(record)
        for key, value in shown.items():
            board.add_scalar(key, value)
    return summaries


def _board_ratio(board: SummaryWriter, name: str, outcome: Outcome) -> None:
    """Write the running basin ratio at about 200 numbers of runs."""
    one, two = ((outcome.basin == i).cumsum(0) for i in (1, 2))
    for i in range(0, len(one), max(1, len(one) // 200)):
        if two[i]:
            board.add_scalar(f"{name}/running_ratio", one[i] / two[i], i + 1)


def _write_runs(file: Path, outcome: Outcome) -> None:
    columns = ["best", "best_step", "last", "steps", "basin", "reached"]
    n = outcome.last_point.shape[1]
    with open(file, "w", newline="") as out:
        table = csv.writer(out)
        table.writerow([*columns, *(f"x{i + 1}" for i in range(n))])
        values = [getattr(outcome, name).tolist() for name in columns]
        for row in zip(*values, outcome.last_point.tolist(), strict=True):
            table.writerow([*row[:-1], *row[-1]])


def show(summaries: dict[str, dict[str, float]]) -> None:
    """Print summaries as a table, one column per optimizer."""
    table = Table("", *summaries)
    for key in dict.fromkeys(k for numbers in summaries.values() for k in numbers):
        cells = [
            f"{numbers[key]:.6g}" if key in numbers else ""
            for numbers in summaries.values()
        ]
        table.add_row(key, *cells)
    Console().print(table)


COMMAND = Command(
    "trajectories",
    Study,
    "configs/study",
    "Many runs of optimizers on a synthetic function.",
    default="trajectories",
)
build = COMMAND.build


def read(args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the settings that arguments describe, and the study's name."""
    settings, name, _ = COMMAND.read(args)
    return settings, name


def trajectories(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    with told_in_a_line():
        settings, name = read(args)
        study = build(settings)
        with Progress(transient=True) as bars:
            tasks = {
                label: bars.add_task(label, start=False) for label in study.optimizers
            }

            def progress(label: str, done: int, total: int) -> None:
                bars.start_task(tasks[label])
                bars.update(tasks[label], completed=done, total=total)

            outcomes = study.run(progress)
        folder = new_folder(name)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    show(write(folder, study, outcomes, settings))
    print(f"logs: {folder}\nto look at them: tensorboard --logdir {LOGS}")
