"""How fast training goes."""

from pytorch_lightning.callbacks import ThroughputMonitor

from lightning_ecd.checks import at_least
from lightning_ecd.curvature.batches import length_of


class Speed(ThroughputMonitor):
    """Logs ``train/device/batches_per_sec`` and ``train/device/samples_per_sec``.

    Lightning's `ThroughputMonitor` for batches as our data modules make them. A batch
    is that of the loader: all mini-batches of a step.

    Args:
        window_size: Batches that a mean is taken over, at least 2.
    """

    def __init__(self, window_size: int = 100):
        at_least(2, window_size=window_size)
        super().__init__(batch_size_fn=length_of, window_size=window_size)
