"""Vectors that an optimizer reports, kept in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightning_ecd.callbacks.publishing import run_folder
from lightning_ecd.errors import UserError


class Histories(Callback):
    """Keeps vectors of `optimizer.info` in the folder ``histories`` of a run.

    One file for every epoch, such as ``from_00001563.npz``, named after its first step:
    under each name an array with a row for every step that reported it, and under
    ``<name>_steps`` the numbers of those steps; `read` puts all files together.
    How often an optimizer reports is up to its `diagnostics_every`; losses and
    landscapes are there at every step.

    Args:
        names: Such as "coordinates", "cosines", "second_order", "losses" and
            "landscape".
    """

    def __init__(self, names: Sequence[str] = ("coordinates", "cosines")):
        if isinstance(names, str) or not names:
            raise ValueError(f"names must be a list of at least one, got {names!r}")
        self.names = list(names)
        self._rows: dict[str, list[Tensor]] = {}
        self._steps: dict[str, list[int]] = {}
        self._missing = set(self.names)
        self._last, self._resumed = 0, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer that reports nothing."""
        optimizer = trainer.optimizers[0]
        if not hasattr(optimizer, "info"):
            raise UserError(
                "trainer.callbacks: Histories keeps what an optimizer reports, "
                f"{type(optimizer).__name__} reports nothing: leave the callback out"
            )
        if self._resumed and trainer.is_global_zero:
            for file in _folder(trainer).glob("from_*.npz"):
                if int(file.stem.removeprefix("from_")) > trainer.global_step:
                    file.unlink()  # of steps that are made anew
        self._resumed = False

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Take what the step reported."""
        step = trainer.global_step
        if step == self._last:  # accumulating: no step
            return
        self._last = step
        info: dict[str, Any] = trainer.optimizers[0].info  # type: ignore[attr-defined]
        for name in self.names:
            if isinstance(info.get(name), Tensor):
                row = info[name].detach().float().cpu()
                self._rows.setdefault(name, []).append(row)
                self._steps.setdefault(name, []).append(step)
                self._missing.discard(name)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch."""
        self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what an unfinished epoch left; name what was never reported."""
        self._write(trainer)
        if self._missing and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            names = ", ".join(sorted(self._missing))
            rank_zero_warn(f"Histories: the optimizer never reported {names}")

    def _write(self, trainer: Trainer) -> None:
        rows, steps = self._rows, self._steps
        self._rows, self._steps = {}, {}
        if not rows or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        arrays = {name: torch.stack(each).numpy() for name, each in rows.items()}
        arrays |= {f"{name}_steps": np.array(each) for name, each in steps.items()}
        folder = _folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        first = min(each[0] for each in steps.values())
        np.savez(folder / f"from_{first:08d}.npz", **arrays)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return what is not yet in a file."""
        missing = sorted(self._missing)
        return {"rows": self._rows, "steps": self._steps, "missing": missing}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was not yet in a file."""
        self._rows, self._steps = state_dict["rows"], state_dict["steps"]
        self._missing, self._resumed = set(state_dict["missing"]), True


def _folder(trainer: Trainer) -> Path:
    return (run_folder(trainer) or Path(trainer.default_root_dir)) / "histories"


def read(folder: str | Path) -> dict[str, np.ndarray]:
    """Return all rows of a run, in the order of its steps.

    Args:
        folder: The run's ``histories``.

    Returns:
        Name -> (rows, ...), and ``<name>_steps`` -> (rows,).
    """
    parts: dict[str, list[np.ndarray]] = {}
    for file in sorted(Path(folder).glob("from_*.npz")):
        with np.load(file) as part:
            for name in part.files:
                parts.setdefault(name, []).append(part[name])
    return {name: np.concatenate(each) for name, each in parts.items()}
