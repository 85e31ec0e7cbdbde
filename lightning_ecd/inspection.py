"""The command `curvature`: the loss around a checkpoint, in numbers and figures."""

import inspect
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from lightning_ecd.callbacks import WholeFiles
from lightning_ecd.checks import at_least
from lightning_ecd.cli import CommandLine, quieten
from lightning_ecd.curvature import Loss, batches_of
from lightning_ecd.curvature.inspection import Findings, Inspection
from lightning_ecd.errors import UserError
from lightning_ecd.parser import (
    PROGRAM,
    Parser,
    checkpoint_file,
    fail,
    run_of,
    told_in_a_line,
)

#: Keys of a fit's config.yaml that are no part of model, data or trainer.
_OF_FIT = {"ckpt_path", "weights_only"}
#: Flags without a dot that belong to the fit.
_OTHERS = {"--config", "--name", "--data", "--model", "--trainer", "--seed_everything"}


def write(folder: Path, found: Findings, plan: Inspection, step: int) -> None:
    """Write curvature.json, curvature.npz, pictures and TensorBoard's records."""
    from lightning_ecd.curvature.figures import drawn  # matplotlib costs a second

    numbers = {
        name: {"value": _finite(value), "error": _finite(error)}
        for name, (value, error) in found.numbers.items()
    }
    (folder / "curvature.json").write_text(json.dumps(numbers, indent=2) + "\n")
    np.savez_compressed(folder / "curvature.npz", **found.arrays)  # type: ignore[arg-type]
    with SummaryWriter(str(folder)) as board:
        for name, (value, _) in found.numbers.items():
            board.add_scalar(f"curvature/{name}", value, step)
        for name, figure in drawn(found, plan).items():
            figure.savefig(folder / f"{name}.png", dpi=120)
            board.add_figure(f"curvature/{name}", figure, step)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show(found: Findings) -> None:
    """Print the numbers as a table."""
    table = Table("", "value", "±")
    for name, (value, error) in found.numbers.items():
        second = f"{error:.2g}" if math.isfinite(error) else ""
        table.add_row(name, f"{value:.6g}", second)
    Console().print(table)


# -- the command ---------------------------------------------------------------------


class Source:
    """Which loss to look at.

    Args:
        ckpt_path: The checkpoint: a file, or "last" or "best" of the newest run of
            --name NAME or --config FILE.
        output: Folder of the results; default: ``curvature`` in the run's folder.
        part: Samples of "train", "val" or "test".
        samples: How many, at most: the first in the order of epoch 0.
        chunk: Samples whose graph is in memory at once.
        to: A second checkpoint: the loss on the straight way to it.
        dtype: "float32" or "float64".
    """

    def __init__(
        self,
        ckpt_path: str,
        output: str | None = None,
        part: Literal["train", "val", "test"] = "train",
        samples: int = 4096,
        chunk: int = 512,
        to: str | None = None,
        dtype: Literal["float32", "float64"] = "float32",
    ):
        at_least(1, samples=samples, chunk=chunk)
        self.ckpt_path, self.output, self.to = ckpt_path, output, to
        self.part, self.samples, self.chunk = part, samples, chunk
        self.dtype = getattr(torch, dtype)


_KINDS = (Source, Inspection)


def _arguments(kind: type) -> list[str]:
    return [*inspect.signature(kind).parameters]


def _parsed(args: Sequence[str]) -> tuple[Source, Inspection]:
    parser = Parser(
        prog=f"{PROGRAM} curvature",
        description="The loss around a checkpoint that fit wrote, always on the same "
        "samples, without augmentation, BatchNorm in evaluation mode. Further "
        "arguments are those of fit; --config defaults to the config.yaml of the "
        "checkpoint's run, and does no more than name the run of last and best.",
    )
    parser.arguments = args
    parser.add_class_arguments(Source)
    parser.add_class_arguments(Inspection)
    values = vars(parser.instantiate_classes(parser.parse_args(list(args))))
    mine = {kind: {k: values[k] for k in _arguments(kind)} for kind in _KINDS}
    return Source(**mine[Source]), Inspection(**mine[Inspection])


def _divided(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return our arguments, and those of the fit that wrote the checkpoint."""
    own: list[str] = []
    rest: list[str] = []
    to = own
    for word in args:
        if word.startswith("-") and not _is_number(word):
            flag = word.split("=")[0]
            to = rest if "." in flag or flag in _OTHERS else own
        to.append(word)
    return own, rest


def _flag_and_value(word: str) -> list[str]:
    """Return --config=FILE as two words, any other word as it is."""
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _weights(line: CommandLine, path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights into the model; return the whole of it."""
    checkpoint = WholeFiles().load_checkpoint(path, map_location="cpu")
    stored = checkpoint.get("hyper_parameters", {}).get("network")
    built = line.dumped()["model"].get("init_args", {}).get("network")
    for name, value in _settings(stored).items():
        other = _settings(built).get(name, value)
        if other != value:  # equal shapes would hide it
            raise UserError(f"{name} is {other!r}, the network of {path} has {value!r}")
    try:
        line.model.on_load_checkpoint(checkpoint)
        line.model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, RuntimeError) as error:
        lines = [text.strip() for text in str(error).splitlines()]
        reason = " ".join(lines[1:] or lines)[:300]
        raise UserError(f"{path} is a checkpoint of another model: {reason}") from error
    return checkpoint


def _settings(part: Any) -> dict[str, Any]:
    """Return the arguments of a class in a configuration."""
    return (part.get("init_args") or {}) if isinstance(part, dict) else {}


def _alone(file: str, folder: str) -> str:
    """Return a config file without what only the command `fit` takes.

    Its config.yaml says where it resumed, which a fit that is only built refuses.
    """
    try:
        settings = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError):
        return file  # the parser explains it
    if not isinstance(settings, dict) or not _OF_FIT & set(settings):
        return file
    kept = {key: value for key, value in settings.items() if key not in _OF_FIT}
    copy = Path(folder) / Path(file).name
    copy.write_text(yaml.safe_dump(kept, sort_keys=False))
    return str(copy)


def _named(rest: Sequence[str], given: str) -> Path:
    """Return the file of a path, or of "last" and "best" of the newest run."""
    words = [part for word in rest for part in word.split("=", 1)]
    said = {flag: value for flag, value in zip(words, words[1:], strict=False)}
    name = said.get("--name") or Path(said.get("--config", "")).stem
    if given in ("last", "best") and not name:
        raise UserError(f"--ckpt_path {given}: of which run? give --name or --config")
    return checkpoint_file(given, name)


def _built(rest: list[str], path: Path, named: bool) -> CommandLine:
    """Return model, data and trainer of the run, set up but without weights.

    Args:
        rest: Arguments of the fit.
        path: The checkpoint.
        named: Whether --config does no more than name the run.
    """
    words = [part for word in rest for part in _flag_and_value(word)]
    config = run_of(path) / "config.yaml"
    if named and config.is_file():  # what was really run, flags included
        pairs = zip(words, [None, *words], strict=False)
        words = [w for w, before in pairs if "--config" not in (w, before)]
    if "--config" not in words:
        if not config.is_file():
            raise UserError(f"give --config FILE: beside {path} lies no config.yaml")
        words = ["--config", str(config), *words]
    off = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    with tempfile.TemporaryDirectory() as place:
        for i, word in enumerate(words[:-1]):
            if word == "--config":
                words[i + 1] = _alone(words[i + 1], place)
        line = CommandLine([*words, *off], run=False, folder=run_of(path))
    model, data, trainer = line.model, line.datamodule, line.trainer
    if data is None:
        raise UserError("curvature needs data: give --data or a config that names it")
    if not callable(getattr(model, "loss", None)):
        raise UserError(f"{type(model).__name__} has no loss(batch) to look at")
    model.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    data.prepare_data()
    return line


def curvature(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    quieten()
    try:
        with told_in_a_line():
            _curvature(args)
    except torch.OutOfMemoryError:
        fail("the memory does not suffice: choose a smaller --chunk, or less --probes")


def _curvature(args: Sequence[str]) -> None:
    own, rest = _divided(args)
    source, plan = _parsed(own)
    path = _named(rest, source.ckpt_path)
    to = source.to and _named(rest, source.to)
    line = _built(rest, path, named=source.ckpt_path in ("last", "best"))
    line.datamodule.setup({"train": "fit", "val": "fit", "test": "test"}[source.part])
    line.model.setup("fit")
    device, dtype = line.trainer.strategy.root_device, source.dtype
    line.model.to(device, dtype)
    batches = batches_of(
        line.datamodule, source.part, source.samples, source.chunk, device, dtype
    )
    with Progress(transient=True) as bars:
        task: list[TaskID] = []

        def stage(name: str, total: int | None) -> None:
            if task:
                bars.remove_task(task.pop())
            task.append(bars.add_task(name, total=total))

        loss = Loss(line.model, batches, progress=lambda: bars.advance(task[0]))
        other = None
        if to:
            _weights(line, Path(to))
            other = loss.x
        checkpoint = _weights(line, path)
        folder = Path(source.output or run_of(path) / "curvature")
        folder.mkdir(parents=True, exist_ok=True)  # before the long work
        found = plan.run(loss, stage, other)
    show(found)
    write(folder, found, plan, int(checkpoint.get("global_step", 0)))
    print(f"{loss.samples} samples, {loss.n} parameters\nresults: {folder}")
