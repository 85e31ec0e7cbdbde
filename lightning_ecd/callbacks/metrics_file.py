"""A CSV logger for runs that are interrupted and resumed."""

import warnings
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger


class MetricsFile(CSVLogger):
    """A CSV logger that keeps the rows of an earlier part of the same run."""

    @property
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            former = file.read_text() if file.is_file() else None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Experiment logs directory")
                experiment = super().experiment
            if former:
                file.write_text(former)
                experiment.metrics_keys = former.splitlines()[0].split(",")
            return experiment
        return super().experiment
