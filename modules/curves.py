"""Losses of many runs, step by step, and what is said of them."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from lightning_ecd.optimizers.ranks import ranks
from lightning_ecd.unrolling import Window

#: A run has diverged when its loss is this many times its first one.
DIVERGED = 10.0
_QUANTILES = (0.1, 0.5, 0.9)


class LossCurves:
    """Collects the losses of windows into one table, a row for every step.

    Windows come group by group: where step 0 appears, other runs begin.
    """

    def __init__(self) -> None:
        self._groups: list[list[Tensor]] = []

    def add(self, window: Window, losses: Tensor) -> None:
        """Add the losses (W, B) of a window's steps."""
        if window.step[0, 0] == 0:
            self._groups.append([])
        self._groups[-1].append(losses.detach().double().cpu())

    def table(self) -> Tensor:
        """Return the losses (T, R) of all runs, those of all processes."""
        table = torch.cat([torch.cat(group) for group in self._groups], 1)
        if ranks() == 1:
            return table
        tables: list[Any] = [None] * ranks()
        distributed.all_gather_object(tables, table)
        return torch.cat(tables, 1)


def summary(table: Tensor) -> dict[str, float]:
    """Return the figures of a table of losses.

    Args:
        table: Losses before every update, shape (T, R), R runs.

    Returns:
        ``loss``: mean over runs and steps; ``final``: mean of the last step, its
        standard error ``final_error`` and quantiles ``final_10``, ``final_50``,
        ``final_90``; ``diverged``: runs whose last loss is above ten times their first
        or not finite; ``worse``: those where it is above the first.

    Example:
        >>> summary(torch.tensor([[2.0, 2.0], [1.0, 3.0]]))["final"]
        2.0
    """
    T, R = table.shape
    first, final = table[0], table[-1]
    finite = torch.isfinite(final)
    error = final.std().item() / R**0.5 if R > 1 else float("nan")
    whole = torch.nan_to_num(final, torch.inf)
    # of the runs themselves: infinite ones cannot be interpolated
    quantiles = np.quantile(whole.numpy(), _QUANTILES, method="nearest")
    return {
        "loss": table.mean().item(),
        "final": final.mean().item(),
        "final_error": error,
        **{
            f"final_{round(100 * share)}": float(value)
            for share, value in zip(_QUANTILES, quantiles, strict=True)
        },
        "diverged": int((~finite | (whole > DIVERGED * first)).sum()),
        "worse": int((~finite | (whole > first)).sum()),
    }


def write_curves(folder: Path, tables: Mapping[str, Tensor]) -> None:
    """Write ``losses.npz`` and ``summary.csv``.

    Args:
        folder: Where to; it is made.
        tables: Losses (T, R) by the name of the optimizer. The file holds ``losses``
            (R, T, optimizers) and ``optimizers``, their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    losses = torch.stack([table.T for table in tables.values()], -1)
    np.savez(folder / "losses.npz", losses=losses.numpy(), optimizers=list(tables))
    rows = {name: summary(table) for name, table in tables.items()}
    with open(folder / "summary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["optimizer", *next(iter(rows.values()))])
        for name, row in rows.items():
            writer.writerow([name, *row.values()])
