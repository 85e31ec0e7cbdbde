"""What Lightning does around the training loop of every run."""

from lightning_ecd.callbacks.checkpoint import Checkpoints, WholeFiles
from lightning_ecd.callbacks.diagnostics import Diagnostics
from lightning_ecd.callbacks.hparams import TensorBoard

__all__ = ["Checkpoints", "Diagnostics", "TensorBoard", "WholeFiles"]
