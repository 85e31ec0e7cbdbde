"""The command `theory`: what the theory of mini-batch SGD says about a problem."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lightning_ecd.callbacks.least_squares import kernel_of, training_samples
from lightning_ecd.checks import above
from lightning_ecd.cli import CommandLine, quieten
from lightning_ecd.errors import UserError
from lightning_ecd.parser import (
    LOGS,
    Command,
    new_folder,
    resolve,
    told_in_a_line,
)
from lightning_ecd.theory import Companions
from lightning_ecd.theory.problems import Given, PowerLaws, Problem
from lightning_ecd.theory.studies import Findings, TheoryStudy
from lightning_ecd.theory.studies.study import Progress

#: Rows of the table that are printed; all are written.
_SHOWN = 40


class Prediction:
    """A study of the theory.

    Args:
        study: What to find out, of `lightning_ecd.theory.studies`.
        problem: About what, of `lightning_ecd.theory.problems`; default: power laws.
        experiment: In place of `problem`: a config of a fit of `modules.Regression`,
            whose network's tangent kernel on the training samples it is.
        arguments: Flags of that fit, such as --data.samples=1000.
        device: Where to compute: "cpu", "cuda", ...
        memory: GiB that an experiment's matrices of samples x samples may take.
    """

    def __init__(
        self,
        study: TheoryStudy,
        problem: Problem | None = None,
        experiment: str | None = None,
        arguments: list[str] | None = None,
        device: str = "cpu",
        memory: float = 4.0,
    ):
        above(0, memory=memory)
        if problem is not None and experiment is not None:
            raise ValueError("problem and experiment exclude each other")
        if arguments and experiment is None:
            raise ValueError("arguments belong to an experiment, which is not given")
        self.study, self.device = study, torch.device(device)
        self.experiment, self.arguments = experiment, arguments or []
        self.problem, self.memory = problem, memory

    def subject(self) -> Problem:
        """Return the problem that the study is about."""
        if self.experiment is not None:
            return self._of_experiment(self.experiment)
        return self.problem or PowerLaws()

    def _of_experiment(self, config: str) -> Problem:
        """Return kernel and output error of an experiment's network at its start."""
        off = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        words = ["--config", config, *self.arguments, *off]
        line = CommandLine(words, run=False, folder=LOGS)  # nothing is written there
        if not getattr(line.model, "least_squares", False) or line.datamodule is None:
            raise UserError(
                f"experiment: {config} must train modules.Regression on a data module"
            )
        return problem_of(line, self.device, self.memory * 2**30)

    def find(self, progress: Progress = lambda what, share: None) -> Findings:
        """Run the study; one that brings its own problem is not given this one."""
        subject = self.subject() if self.study.needs_problem else PowerLaws()
        return self.study.run(subject, progress)


def problem_of(
    line: CommandLine,
    device: torch.device | str = "cpu",
    memory: float = 2**32,
) -> Given:
    """Return kernel and output error of a network at its start.

    Args:
        line: Of a fit of `modules.Regression`, on a data module.
        device: Where to compute.
        memory: Bytes that the kernel and its eigenvectors may take.

    Raises:
        UserError: If they do not fit.
    """
    data = line.datamodule
    data.prepare_data()
    data.setup("fit")
    X, y = training_samples(data.train_dataloader())
    Companions.require_room(len(y), 0, memory)
    K, d = kernel_of(line.model.to(device), X.to(device), y.to(device))
    return Given(K, d)


def write(folder: Path, found: Findings) -> None:
    """Write numbers, arrays, pictures and TensorBoard's records."""
    text = json.dumps(found.numbers, indent=2) + "\n"
    (folder / "numbers.json").write_text(text)
    torch.save({k: v.cpu() for k, v in found.arrays.items()}, folder / "arrays.pt")
    with SummaryWriter(str(folder)) as board:
        for name, value in found.numbers.items():
            if isinstance(value, int | float):
                board.add_scalar(f"theory/{name}", value)
        for name, draw in found.figures.items():
            figure = draw()
            for kind in ("png", "pdf"):
                figure.savefig(folder / f"{name}.{kind}", dpi=120)
            board.add_figure(f"theory/{name}", figure)


def show(found: Findings) -> None:
    """Print the numbers as a table."""
    table = Table("", "value")
    flat = {k: v for k, v in found.numbers.items() if not isinstance(v, list)}
    for name, value in list(flat.items())[:_SHOWN]:
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if len(flat) > _SHOWN:
        print(f"{len(flat) - _SHOWN} more in numbers.json")


COMMAND = Command(
    "theory",
    Prediction,
    "configs/study",
    "What the theory of mini-batch SGD says about a least-squares problem: losses, "
    "stability, phases, momenta.",
    default="theory",
)
build = COMMAND.build


def read(args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the settings that arguments describe, and the study's name."""
    settings, name, folders = COMMAND.read(args)
    resolve(settings, "experiment", folders)
    return settings, name


def theory(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    quieten()
    with told_in_a_line():
        settings, name = read(args)
        prediction = build(settings)
        with Bars(transient=True) as bars:
            task = bars.add_task("problem", total=1.0)

            def progress(what: str, share: float) -> None:
                bars.update(task, description=what, completed=share)

            found = prediction.find(progress)
        folder = new_folder(name)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    write(folder, found)
    show(found)
    print(f"results: {folder}\nto look at them: tensorboard --logdir {LOGS}")
