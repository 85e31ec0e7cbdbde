"""Means over an evaluation."""

from collections.abc import Iterable
from typing import cast

from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric


class Means(nn.ModuleDict):
    """Means over all batches of an evaluation and all processes, by metrics' names.

    Args:
        names: Such as "val/loss".
    """

    def __init__(self, names: Iterable[str]):
        super().__init__({name: MeanMetric() for name in names})

    def of(self, name: str) -> MeanMetric:
        """Return the mean of a name."""
        return cast(MeanMetric, self[name])

    def log(
        self,
        task: LightningModule,
        name: str,
        value: Tensor,
        weight: int = 1,
        prog_bar: bool = True,
    ) -> None:
        """Add a batch to a mean, which is logged at the end of the evaluation.

        Args:
            task: Logs it; the means are among its modules.
            name: Of the mean.
            value: Of the batch: a number, or one for each sample.
            weight: Samples that a number is the mean of.
            prog_bar: Show it on the screen.
        """
        mean = self.of(name)
        mean.update(value, weight=weight)
        task.log(name, mean, on_step=False, on_epoch=True, prog_bar=prog_bar)
