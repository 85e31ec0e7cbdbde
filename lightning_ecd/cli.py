"""The command line: Lightning's, with strict resuming and one-line errors."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import (
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerTypeUnion,
    OptimizerCallable,
)
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_ecd.callbacks import (
    Checkpoints,
    Diagnostics,
    MetricsFile,
    TensorBoard,
    ThriftyProgressBar,
    WholeFiles,
)
from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.functions import Function
from lightning_ecd.optimizers import REGISTRY
from lightning_ecd.overrides import settings_of
from lightning_ecd.parser import (
    LOGS,
    PROGRAM,
    Parser,
    checkpoint_file,
    drop_empty,
    fail,
    new_folder,
    one_line,
    run_of,
    whole_numbers_first,
)

#: The logger that announces seeds.
SEEDS = "lightning_fabric.utilities.seed"
#: Settings of the data that may change on resuming: no training batch depends on them.
_FREE_ON_RESUME = {"data_dir", "eval_batch_size"}
#: Parts of a configuration whose class a later source may change.
_PARTS: dict[str, Any] = {
    "model.optimizer": OptimizerCallable,
    "model.scheduler": Callable[[Optimizer], LRSchedulerTypeUnion] | None,
    "model.network": Callable[[], nn.Module],
    "model.function": Callable[[], Function],
    "data": LightningDataModule,
}


class CommandLine(LightningCLI):
    """`lightning-ecd fit|validate|test|predict`.

    A fit writes everything below ``logs/<name>/<version>``: config.yaml,
    checkpoints, TensorBoard and CSV logs, figures. Resuming goes on in that folder
    and never changes a hyper-parameter: what differs from the checkpoint is refused.

    Args:
        args: A command and its arguments; or, with ``run=False``, the arguments of a
            fit, or all its settings as `dumped` returns them.
        run: Run the command. False only builds model, data and trainer: for callers
            that fit many times.
        folder: Of the run; None: a new one below ``logs/``.

    Attributes:
        settings: The parsed settings of the command.
    """

    #: Without commands; it is made once in a process.
    _flat: LightningArgumentParser | None = None
    _cut = False  # whether the optimizer decided on data.minibatches

    def __init__(
        self,
        args: Sequence[str] | dict[str, Any],
        run: bool = True,
        folder: Path | None = None,
    ):
        self._args = [] if isinstance(args, dict) else list(args)
        self._folder, self._runs = folder, run
        if isinstance(args, dict):
            self.config_dump = deepcopy(args)  # the parser changes what it is given
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={"prog": PROGRAM},
                save_config_kwargs={"overwrite": True},
                args=args if isinstance(args, dict) else self._args,
                run=run,
            )
        finally:
            if run and hasattr(self, "run_folder"):
                drop_empty(self.run_folder)

    # -- parsing -----------------------------------------------------------------

    def setup_parser(self, add_subcommands: bool, *args: Any) -> None:
        """Make the parser, or take the one without commands again."""
        if add_subcommands:
            super().setup_parser(True, *args)
            return
        if CommandLine._flat is None:
            super().setup_parser(False, *args)
            CommandLine._flat = self.parser
        self.parser = CommandLine._flat

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the name of the run, its checkpoints and its diagnostics."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="folder below logs/; default: the name of the first config file",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="test the final weights"
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(Diagnostics, "diagnostics")
        whole_numbers_first(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a class chosen over another one starts from its own defaults."""
        Parser.arguments, Parser.raises = self._args, not self._runs
        try:
            with warnings.catch_warnings():
                ignore = partial(warnings.filterwarnings, "ignore")
                ignore(message="LightningCLI's args parameter")
                ignore(message=".*[Dd]iscarding init_args")
                if not isinstance(args, dict):
                    args = [*args, *self._fresh_parts()]
                super().parse_arguments(parser, args)
        finally:
            Parser.raises = False

    def _fresh_parts(self) -> list[str]:
        """Return flags that state in full every class chosen over another one."""
        parts = []
        for key, kind in _PARTS.items():
            flags = settings_of(key, self._args)
            if flags is not None:
                alone = Parser(prog=PROGRAM)
                alone.add_argument(f"--{key}", type=kind)
                value = alone.parse_args(
                    [f"--{key}" + flag.removeprefix("--value") for flag in flags]
                )
                state = alone.dump(value, format="json", skip_unset=False)
                part = reduce(getitem, key.split("."), json.loads(state))
                parts.append(f"--{key}={json.dumps(part)}")
        return parts

    @property
    def settings(self) -> Namespace:
        """The parsed settings of the command."""
        command = self.config.get("subcommand")
        return self.config[command] if command else self.config

    def dumped(self) -> dict[str, Any]:
        """Return all settings as plain data; batches are cut anew from them."""
        self._dump_config()
        if self._cut:
            self.config_dump["data"]["init_args"]["minibatches"] = 1
        return self.config_dump

    def _parse_ckpt_path(self) -> None:
        """Resolve the checkpoint; refuse settings that differ from it.

        Lightning would take the checkpoint's hyper-parameters without a word.
        """
        given = self.settings.get("ckpt_path")
        if given is None:
            return
        path = checkpoint_file(str(given), self._name())
        self.settings["ckpt_path"] = str(path)
        if self.config["subcommand"] == "fit":
            checkpoint = WholeFiles().load_checkpoint(path, map_location="cpu")
            self._refuse_changes(checkpoint, path)

    def _refuse_changes(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.subcommand = self.config["subcommand"]
        self._dump_config()
        dump = dict(self.config_dump)
        del self.config_dump
        stored = {
            "model": checkpoint.get("hyper_parameters", {}),
            "data": checkpoint.get("datamodule_hyper_parameters", {}),
        }
        changes = []
        for part, old in stored.items():
            new = dump.get(part) or {}
            if "_class_path" in old and old["_class_path"] != new.get("class_path"):
                changes.append((part, old["_class_path"], new.get("class_path")))
            else:
                changes += _differences(old, new.get("init_args", {}), part)
        if changes:
            listed = "; ".join(
                f"{key} is {new}, the checkpoint has {old}" for key, old, new in changes
            )
            fail(
                f"{listed}: resuming {path} never changes a hyper-parameter; set it "
                "back, or start a new run without --ckpt_path"
            )

    # -- building ----------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; a bad argument is one line."""
        try:
            self._cut_batches()
            super().instantiate_classes()
            make = getattr(self.model, "make_optimizer", None)
            if make is not None:  # else a bad value would show up late, as a traceback
                make([nn.Parameter(torch.zeros(1))])
        except (ValueError, TypeError, OSError, MisconfigurationException) as error:
            raise UserError(one_line(str(error))) from error

    def _cut_batches(self) -> None:
        """Give the data as many mini-batches per batch as the optimizer asks for."""
        parts = (self.settings.get(name) for name in ("model", "data"))
        init, data_init = (part.get("init_args") if part else None for part in parts)
        if not init or not data_init or "minibatches" not in data_init:
            return
        needed = init.get("minibatches")
        optimizer = init.get("optimizer")
        if needed is None and optimizer:
            entry = REGISTRY.get(optimizer["class_path"].rsplit(".", 1)[-1])
            values = vars(optimizer.get("init_args") or Namespace())
            needed = entry.minibatches(values) if entry else 1
        if data_init["minibatches"] == 1 and needed is not None:
            data_init["minibatches"] = needed
            self._cut = True

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add our loggers, checkpoint files and progress bar where none are named."""
        settings = self._get(self.config_init, "trainer")
        fitting = self.subcommand in (None, "fit")
        self.run_folder = self._folder or self._run_folder(settings["fast_dev_run"])
        if settings.get("logger") in (None, True):
            kwargs["logger"] = self._loggers() if fitting else False
        if settings.get("default_root_dir") is None:
            kwargs["default_root_dir"] = str(self.run_folder)
        plugins = settings.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, WholeFiles()]
        if self.subcommand != "fit":
            self.save_config_callback = None
        callbacks = settings.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
        if not bar and settings.get("enable_progress_bar") is not False:
            callbacks.append(ThriftyProgressBar())
        kwargs["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def _name(self) -> str:
        if self.settings.get("name"):
            return str(self.settings["name"])
        files = self.settings.get("config") or []
        return Path(str(files[0])).stem if files else "run"

    def _run_folder(self, quick: bool | int) -> Path:
        """Return the folder of the checkpoint's run, or of a new one."""
        checkpoint = self.settings.get("ckpt_path")
        if checkpoint is not None:
            return run_of(Path(checkpoint))
        # Of many processes the first one writes; it tells the others where to read.
        writes = not quick and not rank_zero_only.rank  # type: ignore[attr-defined]
        return new_folder(self._name()) if writes else LOGS / self._name()

    def _loggers(self) -> list[Any]:
        folder = self.run_folder
        place = (str(folder.parent.parent), folder.parent.name, folder.name)
        return [TensorBoard(*place), MetricsFile(*place)]

    # -- running -----------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Train, then test the final weights; `metrics` are those of both."""
        self.trainer.fit(**kwargs)
        self.metrics = dict(self.trainer.callback_metrics)
        checkpoints = [
            callback
            for callback in self.trainer.checkpoint_callbacks
            if isinstance(callback, Checkpoints) and callback.interrupted
        ]
        if checkpoints:
            number, last = checkpoints[0].interrupted, checkpoints[0].last
            file = f"{checkpoints[0].folder}/last.ckpt"
            how = (
                f"go on with\n  {PROGRAM} fit --config {self.run_folder}/config.yaml "
                f"--ckpt_path {file}"
            )
            step = self.trainer.global_step
            print(f"interrupted after step {step}; {how if last else 'nothing saved'}")
            raise SystemExit(128 + int(number or 0))
        if self.settings.get("test_after_fit") and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._test(kwargs.get("datamodule"))
        if not self.trainer.fast_dev_run and self.trainer.is_global_zero:  # type: ignore[attr-defined]
            print(f"logs: {self.run_folder}")
            print(f"to look at them: tensorboard --logdir {LOGS}")

    def _test(self, data: LightningDataModule | None) -> None:
        testable = type(self.model).test_step is not LightningModule.test_step
        if data is None or not testable:
            return
        results = self.trainer.test(self.model, datamodule=data, verbose=False)
        self.metrics |= self.trainer.callback_metrics
        if self.trainer.is_global_zero:
            for name, value in (results[0] if results else {}).items():
                print(f"{name}: {value:.6g}")

    def predict(self, **kwargs: Any) -> None:
        """Write one line per sample to predictions.csv in the run's folder."""
        rows = torch.cat([*(self.trainer.predict(**kwargs) or [])])
        self.run_folder.mkdir(parents=True, exist_ok=True)
        file = self.run_folder / "predictions.csv"
        rows = rows.reshape(len(rows), -1).cpu()
        with open(file, "w") as out:
            for row in rows.tolist():
                out.write(",".join(map(str, row)) + "\n")
        print(f"predictions: {file}")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("datamodule", True) is None:
            fail(f"{subcommand} needs data: give --data or a config that names it")
        return kwargs


def _differences(old: Any, new: Any, key: str) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) wherever settings that both sides know differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        shared = [k for k in old if k in new and k not in _FREE_ON_RESUME]
        return [
            change
            for k in shared
            if not k.startswith("_")
            for change in _differences(old[k], new[k], _joined(key, k))
        ]
    return [] if old == new else [(key, old, new)]


def _joined(key: str, name: str) -> str:
    return key if name == "init_args" else f"{key}.{name}"


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a message says more than advertisements and config.yaml do."""
    return not re.search("Tip:|Seed set|GPU available|TPU avail", record.getMessage())


def quieten() -> None:
    """Drop idle messages, and warnings about Lightning's own use of torch."""
    for name in ("pytorch_lightning.utilities.rank_zero", SEEDS):
        logging.getLogger(name).addFilter(_is_news)
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks")
    warnings.filterwarnings("ignore", message="When using the `ThroughputMonitor`")


def main(args: Sequence[str]) -> None:
    """Run a command of Lightning's; what the user can mend is one line."""
    quieten()
    try:
        CommandLine(args)
    except (UserError, MisconfigurationException) as error:
        fail(str(error).replace("\n", " "))
    except Diverged as error:
        fail(str(error), code=1)
    except RuntimeError as error:
        if str(error).startswith("Early stopping conditioned"):
            fail(f"trainer.callbacks: {str(error).splitlines()[0]}")
        if "Error(s) in loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        fail(f"the checkpoint is of another model: {' '.join(lines[1:])[:300]}")
