"""What trials run: a fit of the command line, or a study of many runs."""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lightning_ecd import pool, studies
from lightning_ecd.callbacks import Checkpoints, TensorBoard
from lightning_ecd.callbacks.hparams import flattened
from lightning_ecd.cli import CommandLine, quieten
from lightning_ecd.errors import UserError
from tune.trial import Trial

#: The logger that announces devices and the reasons why a run stops.
_NEWS = "pytorch_lightning.utilities.rank_zero"
#: A checkpoint's file in its folder.
_CHECKPOINT = "last.ckpt"
#: PyYAML's, in C where it was built with it: ten times as fast.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
#: What a trial leaves to its search: to show how it goes on, and to keep checkpoints.
_LEFT = (
    *("trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("checkpoint.last", "diagnostics.figure"),
)


class Fit:
    """A fit; it reports every epoch and every validation.

    Args:
        settings: All settings, as `CommandLine.dumped` returns them.
        metric: What the search looks at; the final weights are tested if it is a
            metric of the test.
        checkpoint: Hand a checkpoint to the search with every report.
        accelerator: Where trials run if the settings leave it open ("auto").
    """

    def __init__(
        self,
        settings: dict[str, Any],
        metric: str,
        checkpoint: bool = True,
        accelerator: str = "auto",
    ):
        self.settings, self.checkpoint = settings, checkpoint
        self.test = metric.startswith("test/")
        self.accelerator = accelerator

    def key(self, name: str) -> str:
        """Return the full key of a hyper-parameter: short names are the optimizer's."""
        return (
            name if name.split(".")[0] in self.settings else f"model.optimizer.{name}"
        )

    def configured(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial, such as `fit` takes in a file.

        Raises:
            UserError: If there is no setting of a name.
        """
        return overridden(self.settings, {self.key(k): v for k, v in values.items()})

    def build(
        self, values: Mapping[str, Any], folder: Path, accelerator: str | None = None
    ) -> CommandLine:
        """Return model, data and trainer of a trial.

        Args:
            values: Hyper-parameters.
            folder: Where it writes.
            accelerator: In place of the settings'.
        """
        settings = overridden(self.configured(values), dict.fromkeys(_LEFT, False))
        trainer = settings["trainer"]
        if accelerator is not None:
            trainer["accelerator"] = accelerator
        elif trainer["accelerator"] == "auto":
            trainer["accelerator"] = self.accelerator
        return CommandLine(settings, run=False, folder=folder)

    def read_data(self) -> None:
        """Download the data if need be and read them, into the pool if that is open.

        Raises:
            UserError: If they are missing or damaged.
        """
        with hushed(), tempfile.TemporaryDirectory() as folder:
            data = self.build({}, Path(folder), "cpu").datamodule
            if data is not None:
                data.prepare_data()
                data.setup("fit")
                if self.test:
                    data.setup("test")

    def __call__(self, trial: Trial) -> None:
        """Run a trial."""
        with hushed():
            self._run(trial)

    def _run(self, trial: Trial) -> None:
        line = self.build(trial.values, trial.folder)
        if pool.content():
            line.datamodule.prepare_data = lambda: None  # it has been, by the search
        with open(trial.folder / "config.yaml", "w") as out:
            yaml.dump(self.configured(trial.values), out, _DUMPER, sort_keys=False)
        report = _Report(trial, self)
        trainer: Any = line.trainer
        trainer.callbacks.append(report)
        path = trial.checkpoint and trial.checkpoint / _CHECKPOINT
        trainer.fit(line.model, datamodule=line.datamodule, ckpt_path=path)
        if _interrupted(trainer):
            raise KeyboardInterrupt
        metrics = report.numbers()
        if self.test:
            trainer.test(line.model, datamodule=line.datamodule, verbose=False)
            metrics |= report.numbers()
        trial.report(metrics, finished=True)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep back what Lightning announces about every Trainer and fit."""
    quieten()
    logger = logging.getLogger(_NEWS)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _interrupted(trainer: pl.Trainer) -> bool:
    found = [c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)]
    return any(c.interrupted is not None for c in found)


class _Report(Checkpoint):
    """Reports a fit's metrics at the end of every epoch and validation.

    Ray's own callback imports whichever Lightning package it finds first. Checkpoint
    callbacks come after the task's own hooks, which log means over the epoch.

    Args:
        trial: Who is told.
        fit: Of the trial.
    """

    def __init__(self, trial: Trial, fit: Fit):
        self.trial, self.fit = trial, fit
        self.trainer: pl.Trainer | None = None
        self.metrics: dict[str, float] = {}

    def setup(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
    ) -> None:
        self.trainer = trainer
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                names = [*logger.metric_names, self.trial.metric]
                logger.metric_names = tuple(dict.fromkeys(names))

    def state_dict(self) -> dict[str, Any]:
        return {"reports": self.trial.reports, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trial.reports = state_dict["reports"]
        self.metrics = state_dict["metrics"]

    def numbers(self) -> dict[str, float]:
        """Return the latest value of every metric, of an earlier part of the fit too.

        Diagnostics of the optimizer stay in the trial's own logs.
        """
        assert self.trainer is not None
        logged = self.trainer.callback_metrics.items()
        found = {k: float(v) for k, v in logged if not k.startswith("optimizer/")}
        found["epoch"] = float(self.trainer.current_epoch)
        self.metrics = {**self.metrics, **found}
        return dict(self.metrics)

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        if self.trial.population and self.trial.checkpoint:
            values = self.trial.values.items()
            own = {self.fit.key(name).rsplit(".", 1)[-1]: v for name, v in values}
            for group in trainer.optimizers[0].param_groups:
                group.update(own)

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not last:
            self._report(trainer)

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        metrics = self.numbers()
        if self.fit.test or _interrupted(trainer):
            return  # the metric is known at the end; a cut epoch is no epoch
        if self.trial.metric not in metrics:
            return  # no validation yet
        # A file of the end of a cut epoch would count the epoch as finished.
        whole = self.fit.checkpoint and trainer.is_last_batch

        def save(folder: Path) -> None:
            trainer.save_checkpoint(folder / _CHECKPOINT, weights_only=False)

        self.trial.report(metrics, save if whole else None)


class Trajectories:
    """A study: many runs on a function; it reports once.

    Args:
        settings: All settings, as `studies.read` returns them.
        arm: The optimizer, of the study's, that the search is about.

    Raises:
        UserError: If the study has no such optimizer.
    """

    def __init__(self, settings: dict[str, Any], arm: str):
        optimizers = settings["optimizers"]
        if arm not in optimizers:
            raise UserError(
                f"optimizers: the study has no {arm!r}; it has {', '.join(optimizers)}"
            )
        self.settings = {**settings, "optimizers": {arm: optimizers[arm]}}
        self.arm = arm

    def key(self, name: str) -> str:
        """Return the full key of a hyper-parameter: short names are the optimizer's."""
        known = name.split(".")[0] in self.settings
        return name if known else f"optimizers.{self.arm}.{name}"

    def configured(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a trial, such as `trajectories` takes in a file."""
        return overridden(self.settings, {self.key(k): v for k, v in values.items()})

    def __call__(self, trial: Trial) -> None:
        """Run a trial."""
        study = studies.build(self.configured(trial.values))
        numbers = study.summary(study.run()[self.arm])
        show_in_tensorboard(trial, numbers)
        trial.report(numbers, finished=True)


class Seeded:
    """Another objective at fixed settings, whose one hyper-parameter is the seed.

    Args:
        objective: What is repeated.
        values: Its hyper-parameters.
        keys: Which settings take the seed.
    """

    def __init__(
        self,
        objective: "Fit | Trajectories",
        values: Mapping[str, Any],
        keys: Sequence[str],
    ):
        self.objective, self.values, self.keys = objective, dict(values), tuple(keys)

    def __call__(self, trial: Trial) -> None:
        """Run a trial."""
        trial.values = {**self.values, **dict.fromkeys(self.keys, trial.values["seed"])}
        self.objective(trial)


def show_in_tensorboard(trial: Trial, numbers: Mapping[str, float]) -> None:
    """Write hyper-parameters and metrics where TensorBoard's tab of them looks.

    Args:
        trial: Of an objective that has no logger of its own.
        numbers: Its metrics.
    """
    with SummaryWriter(str(trial.folder)) as board:
        for record in hparams(flattened(trial.values), dict.fromkeys(numbers, 0.0)):
            board._get_file_writer().add_summary(record)
        for name, value in numbers.items():
            board.add_scalar(name, value)


#: The settings that take a run's seed, where they exist.
SEEDS = ("seed_everything", "data.seed", "model.optimizer.seed")


def overridden(
    settings: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings with some of them replaced.

    Args:
        settings: Nested; ``init_args`` need not be named in a key.
        values: Dotted key to value.

    Raises:
        UserError: If there is no such key.
    """
    changed = deepcopy(dict(settings))
    for key, value in values.items():
        part, name = _place(changed, key)
        part[name] = value
    return changed


def has(settings: Mapping[str, Any], key: str) -> bool:
    """Return whether there is a dotted key; see `overridden`."""
    try:
        _place(settings, key)
    except UserError:
        return False
    return True


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; see `overridden`.

    Raises:
        UserError: If there is no such key.
    """
    part, name = _place(settings, key)
    return part[name]


def _place(settings: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """Return the part of settings that holds a dotted key, and its name there."""
    part: Any = {"": settings}
    last = ""
    for name in key.split("."):
        part = part[last]
        if isinstance(part, dict) and name not in part and "init_args" in part:
            part = part["init_args"]
        if not isinstance(part, dict) or name not in part:
            there = ", ".join(part) if isinstance(part, dict) else "nothing"
            raise UserError(
                f"there is no setting {key}: instead of {name} there is {there}"
            )
        last = name
    return part, last
