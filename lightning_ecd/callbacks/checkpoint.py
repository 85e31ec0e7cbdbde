"""Checkpoints that are whole, and a run that resumes to the bit."""

import math
import os
import random
import signal
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError

#: In which a spawned process hands back weights, nothing else (ddp_spawn).
HANDED_BACK = ".temp.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs, then renames.

    Whenever the process or the machine dies, the file of that name is the old or the
    new checkpoint, whole. (Lightning writes to the temporary folder and moves, which
    is a copy when that is another file system.)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write the checkpoint.

        Raises:
            UserError: If it cannot be written; what stood under `path` stays.
        """
        target = Path(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(beside, "wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, target)
            finally:  # also after Ctrl-C
                beside.unlink(missing_ok=True)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            kept = " (the former one is untouched)" if target.exists() else ""
            raise UserError(
                f"cannot write the checkpoint {target}{kept}: {_reason(error)}; free "
                "some space or set another folder"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint as plain data: nothing in it is executed.

        Raises:
            UserError: If it is missing, truncated or holds more than plain data.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no checkpoint {path}")
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        except Exception as error:  # torch's reader raises whatever it stumbles over
            raise UserError(
                f"cannot read the checkpoint {path}: it is truncated or corrupted, or "
                "holds more than plain data, which is never executed"
            ) from error
        if Path(path).name == HANDED_BACK:
            return checkpoint
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise UserError(f"{path} is not a checkpoint of a Trainer")
        return checkpoint


def _reason(error: BaseException) -> str:
    """Return the first line of what the operating system or torch said."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause).strip().split("\n")[0]


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Checkpoints(Checkpoint):
    """Saves ``last.ckpt`` often enough that no run is lost, and the best one.

    ``last.ckpt`` is written every `every_n_steps` steps, at the end of every epoch,
    at the last step of a run that max_steps cuts, and at the end of the running step
    after Ctrl-C or SIGTERM, which then end the run (a second Ctrl-C at once). Random
    states travel along, so that a resumed run equals the uninterrupted one to the
    bit.

    Args:
        folder: Where to write; None: ``checkpoints`` in the run's folder.
        every_n_steps: Steps between files; 0: only at the end of epochs.
        monitor: Metric of ``best.ckpt``; None: no such file.
        mode: "max" or "min": which values of the metric are better.
        last: Whether to write last.ckpt at all.
    """

    def __init__(
        self,
        folder: str | None = None,
        every_n_steps: int = 500,
        monitor: str | None = None,
        mode: str = "max",
        last: bool = True,
    ):
        at_least(0, every_n_steps=every_n_steps)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be min or max, got {mode!r}")
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.last = last
        self.best: float | None = None
        self.interrupted: int | None = None
        self._asked: int | None = None
        self._saved_step = -1
        self._random: list[dict[str, Any]] | None = None
        self._metrics: dict[str, float] = {}
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the folder."""
        if self.folder is None:
            self.folder = os.path.join(trainer.default_root_dir, "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the random states of the checkpoint, and the signals."""
        # Not earlier: setting up a run draws random numbers.
        if self._random is not None:
            _set_random_states(self._random[trainer.global_rank % len(self._random)])
            self._random = None
        for config in trainer.lr_scheduler_configs:
            watched = config.reduce_on_plateau and config.interval == "epoch"
            if watched and config.monitor in self._metrics:
                scheduler: Any = config.scheduler
                scheduler.step(self._metrics[config.monitor])
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """Remember a signal; a second Ctrl-C ends the run at once."""
        if self._asked == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._asked = number

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        # Not later: Lightning gives its own back before `teardown`.
        self._release_signals()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._release_signals()

    def _release_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is due, and stop if a signal asked for it."""
        step = trainer.global_step
        if step == self._saved_step or self._within_accumulation(trainer, batch_idx):
            return
        if self._stop_asked(trainer):
            self._save(trainer, "last.ckpt")
            self.interrupted = self._asked
            # Neither the minimum of epochs nor another validation delays the end.
            trainer.fit_loop.min_epochs = 0
            trainer.fit_loop.epoch_loop.min_steps = None
            trainer.limit_val_batches = 0
            trainer.should_stop = True
        elif (
            (self.every_n_steps and step % self.every_n_steps == 0)
            or step == trainer.max_steps
            or trainer.should_stop
        ):
            self._save(trainer, "last.ckpt")

    def _within_accumulation(self, trainer: Trainer, batch_idx: int) -> bool:
        k, last = trainer.accumulate_grad_batches, trainer.is_last_batch
        return (batch_idx + 1) % k != 0 and not last

    def _stop_asked(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._asked is not None
        # Ranks agree, but not at every step: asking them waits.
        every = trainer.log_every_n_steps or 50  # type: ignore[attr-defined]
        if trainer.global_step % every:
            return False
        asked = self._asked is not None
        if trainer.strategy.reduce_boolean_decision(asked, all=False):
            self._asked = self._asked or signal.SIGTERM
        return self._asked is not None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best weights so far."""
        fitting = trainer.state.fn == TrainerFn.FITTING
        if self.monitor is None or trainer.sanity_checking or not fitting:
            return
        if self.monitor not in trainer.callback_metrics:
            raise UserError(
                f"checkpoint.monitor={self.monitor} is not logged; logged are "
                + ", ".join(sorted(trainer.callback_metrics))
            )
        value = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value):  # no number is better than that
            return
        if self.best is None or sign * value > sign * self.best:
            self.best = value
            self._save(trainer, "best.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished epoch."""
        # A file written at the end of a cut epoch would count it as finished and
        # skip its other batches on resuming.
        if trainer.is_last_batch and self.interrupted is None:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        left_out = name == "last.ckpt" and not self.last
        if trainer.fast_dev_run or left_out:  # type: ignore[attr-defined]
            return
        assert self.folder is not None
        if name == "last.ckpt":
            self._saved_step = trainer.global_step
        trainer.save_checkpoint(os.path.join(self.folder, name), weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best value so far."""
        self.best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add every rank's random states, and what schedulers watch."""
        states: list[Any] = [_random_states()]
        if trainer.world_size > 1 and dist.is_initialized():
            states = [None] * trainer.world_size
            dist.all_gather_object(states, _random_states())
        checkpoint["random_states"] = states
        metrics = trainer.callback_metrics.items()
        checkpoint["metrics"] = {name: float(value) for name, value in metrics}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random states for the start of training."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = checkpoint.get("metrics", {})
        self._metrics = metrics if _begin_next_epoch(checkpoint) else {}
        self._random = checkpoint.get("random_states")
        if self._random is None:
            warnings.warn(
                "the checkpoint holds no random states: the resumed run will differ "
                "from an uninterrupted one",
                stacklevel=2,
            )


def _begin_next_epoch(checkpoint: dict[str, Any]) -> bool:
    """Turn the state of an epoch's end into that of the next one's beginning.

    From the former Lightning 2.6 takes one batch of every epoch if there is a
    max_steps, and miscounts epochs if the file is of the last batch.

    Args:
        checkpoint: What was loaded; its loops are changed in place.

    Returns:
        Whether the file is of `on_train_epoch_end`, which comes before schedulers
        that watch a metric are updated.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epoch, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    now = epoch["current"]
    if now["processed"] < now["ready"] and not batches["is_last_batch"]:
        return False
    ended = now["completed"] < now["processed"]
    for counts in (epoch["total"], epoch["current"]):
        counts["completed"] = counts["processed"] = counts["ready"]
    batches["total"]["completed"] = batches["total"]["ready"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
    return ended


def _random_states() -> dict[str, Any]:
    """Return the states of all global generators, as plain data and tensors."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
