"""Where the numbers of a table's rows come from: fits, tests and studies."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_ecd.errors import UserError
from lightning_ecd.parser import one_line

Numbers = dict[str, float]
Kind = Literal["fit", "test", "trajectories", "theory"]


def interrupted(end: BaseException) -> bool:
    """Return whether a program ends because it was told to: Ctrl-C or SIGTERM.

    A fit that is told so saves and then exits with 128 and the signal's number.
    """
    codes = (128 + signal.SIGINT, 128 + signal.SIGTERM)
    return not isinstance(end, SystemExit) or end.code in codes


def read_yaml(file: Path) -> Any:
    """Return the content of a file; UserError says where it is no YAML."""
    try:
        return yaml.safe_load(file.read_text())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{file}{place}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {one_line(str(error))}") from error


def kind_of(file: Path) -> Kind:
    """Return the command that runs a file of configs/study or configs/experiment.

    A study of the theory names a `study`, one of trajectories a `function`; an
    experiment of `modules.Evaluation` trains nothing: it is tested, all others fitted.
    """
    settings = read_yaml(file)
    if not isinstance(settings, dict):
        raise UserError(f"{file}: a study or an experiment has keys")
    if "study" in settings:
        return "theory"
    if "function" in settings:
        return "trajectories"
    model = settings.get("model")
    name = model.get("class_path", "") if isinstance(model, dict) else ""
    return "test" if name.rsplit(".", 1)[-1] == "Evaluation" else "fit"


def run_experiment(
    arguments: Sequence[str], seed: int, command: Literal["fit", "test"] = "fit"
) -> Numbers:
    """Fit or test with the command line's arguments; return the metrics at the end."""
    from lightning_ecd.cli import CommandLine, quieten

    quieten()
    shown = [
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]
    line = CommandLine([command, *arguments, *shown, f"--seed_everything={seed}"])
    metrics = line.metrics if command == "fit" else line.trainer.callback_metrics
    return {name: float(value) for name, value in metrics.items()}


def test_experiment(arguments: Sequence[str], seed: int) -> Numbers:
    """Test with the command line's arguments; return the metrics."""
    return run_experiment(arguments, seed, "test")


def run_trajectories(arguments: Sequence[str], seed: int) -> Numbers:
    """Run a study of trajectories; return ``optimizer/number`` of all optimizers."""
    from lightning_ecd import studies

    with _mendable():
        settings, _ = studies.read([*arguments, f"--seed={seed}"])
        study = studies.build(settings)
        return {
            f"{name}/{key}": value
            for name, outcome in study.run().items()
            for key, value in study.summary(outcome).items()
        }


def run_theory(arguments: Sequence[str], seed: int) -> Numbers:
    """Run a study of the theory; return its numbers, lists of them left out.

    It draws nothing by itself: `seed` comes in by the arguments, if at all.
    """
    from lightning_ecd import predictions
    from lightning_ecd.cli import quieten

    quieten()
    with _mendable():
        settings, _ = predictions.read(arguments)
        numbers = predictions.build(settings).find().numbers
    return {k: float(v) for k, v in numbers.items() if isinstance(v, int | float)}


@contextmanager
def _mendable() -> Iterator[None]:
    """Make one line of what a study says of bad settings."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise UserError(one_line(str(error))) from error


#: Kind -> runs it with arguments and a seed.
SOURCES: dict[Kind, Callable[[Sequence[str], int], Numbers]] = {
    "fit": run_experiment,
    "test": test_experiment,
    "trajectories": run_trajectories,
    "theory": run_theory,
}
