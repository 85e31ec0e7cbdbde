"""A CSV logger for runs that are interrupted and resumed."""

import csv
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class MetricsFile(CSVLogger):
    """A CSV logger that keeps the rows of an earlier part of the same run.

    Rows that were written after the checkpoint which the run goes on from are written
    again, and stay once.
    """

    _resumes = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file, which knows the columns of the rows before."""
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            former = file.read_text() if file.is_file() else ""
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                experiment = super().experiment  # deletes the file
            if former:
                self._resumes = True
                file.write_text(former)
                experiment.metrics_keys = former.splitlines()[0].split(",")
            return experiment
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write down a row of metrics."""
        if self.experiment is not None and self._resumes and step is not None:
            self._resumes = False
            self._forget(metrics, step)
        super().log_metrics(metrics, step)

    def _forget(self, metrics: Mapping[str, Any], step: int) -> None:
        """Delete what is about to be written again, from this row on."""
        file = Path(self.log_dir) / "metrics.csv"
        with open(file, newline="") as lines:
            rows = csv.DictReader(lines)
            again = partial(_again, names=metrics.keys(), step=step)
            kept = list(takewhile(lambda row: not again(row), rows))
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(kept)


def _again(row: dict[str, str | None], names: Collection[str], step: int) -> bool:
    """Return whether a row of a file is of the same metrics at a step, or of later."""
    if None in row.values():  # a crash has cut it
        return True
    own = int(row["step"] or 0)
    filled = {name for name, text in row.items() if text}
    return own > step or (own == step and filled - {"step"} == set(names) - {"step"})
