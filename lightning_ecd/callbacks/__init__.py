"""What Lightning does around the training loop of every run."""

from lightning_ecd.callbacks.checkpoint import Checkpoints, WholeFiles
from lightning_ecd.callbacks.diagnostics import Diagnostics
from lightning_ecd.callbacks.hparams import TensorBoard
from lightning_ecd.callbacks.progress import ThriftyProgressBar

__all__ = [
    "Checkpoints",
    "Diagnostics",
    "TensorBoard",
    "ThriftyProgressBar",
    "WholeFiles",
]
