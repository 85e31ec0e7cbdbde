"""How fast training goes."""

from typing import Any

import torch
from pytorch_lightning.callbacks import ThroughputMonitor
from torch.utils._pytree import tree_leaves

from lightning_ecd.checks import at_least


class Speed(ThroughputMonitor):
    """Logs ``train/device/batches_per_sec`` and ``train/device/samples_per_sec``.

    Lightning's `ThroughputMonitor` for batches as our data modules make them. A batch
    is that of the loader: all mini-batches of a step.

    Args:
        window_size: Batches that a mean is taken over, at least 2.
    """

    def __init__(self, window_size: int = 100):
        at_least(2, window_size=window_size)
        super().__init__(batch_size_fn=_samples, window_size=window_size)


def _samples(batch: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(batch) if torch.is_tensor(leaf))
    return next((len(leaf) for leaf in tensors if leaf.dim()), 1)
