"""What Lightning does around the training loop of every run."""

from lightning_ecd.callbacks.averaging import LastAverage, WeightAverage
from lightning_ecd.callbacks.batchnorm import BatchNormEstimate
from lightning_ecd.callbacks.budget import Budget
from lightning_ecd.callbacks.checkpoint import Checkpoints, WholeFiles
from lightning_ecd.callbacks.confusion import Confusion
from lightning_ecd.callbacks.curvature import Curvature
from lightning_ecd.callbacks.diagnostics import Diagnostics
from lightning_ecd.callbacks.forecast import Forecast
from lightning_ecd.callbacks.histories import Histories
from lightning_ecd.callbacks.hparams import TensorBoard
from lightning_ecd.callbacks.losses_along import LossesAlong
from lightning_ecd.callbacks.metrics_file import MetricsFile
from lightning_ecd.callbacks.progress import ThriftyProgressBar
from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.callbacks.regimes import Regimes
from lightning_ecd.callbacks.slices import RadialSlice
from lightning_ecd.callbacks.speed import Speed
from lightning_ecd.callbacks.surface import Surface
from lightning_ecd.callbacks.untrained import StopUntrained

__all__ = [
    "BatchNormEstimate",
    "Budget",
    "Checkpoints",
    "Confusion",
    "Curvature",
    "Diagnostics",
    "Forecast",
    "Histories",
    "LastAverage",
    "LossesAlong",
    "MetricsFile",
    "RadialSlice",
    "Regimes",
    "Speed",
    "StopUntrained",
    "Surface",
    "TensorBoard",
    "ThriftyProgressBar",
    "WeightAverage",
    "WholeFiles",
    "publish",
]
