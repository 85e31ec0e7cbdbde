"""Which classes a classifier takes for which."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.errors import UserError


class Confusion(Callback):
    """Draws the confusion matrix of every test: rows are true, columns predicted.

    ``confusion.png`` in the run's folder, ``test/confusion`` in TensorBoard. Classes
    without a name are numbered. For `modules.Classifier`, or any task whose test_step
    returns logits (B, outputs) of batches (inputs, labels).

    Args:
        shares: Show shares of each true class in place of counts.
    """

    def __init__(self, shares: bool = False):
        self.shares = shares
        self._matrix: MulticlassConfusionMatrix | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        data = getattr(trainer, "datamodule", None)
        classes = getattr(data, "classes", 0)
        if classes < 2:
            raise UserError(
                f"trainer.callbacks: Confusion needs classes, {type(data).__name__} "
                "has none: leave the callback out"
            )
        normalize: Any = "true" if self.shares else "none"
        matrix = MulticlassConfusionMatrix(classes, normalize=normalize)
        self._matrix = matrix.to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        if not isinstance(outputs, Tensor):
            raise UserError(
                "trainer.callbacks: Confusion needs a task whose test_step returns "
                f"logits, {type(pl_module).__name__}'s does not: leave the callback out"
            )
        assert self._matrix is not None
        self._matrix.update(outputs[:, : self._matrix.num_classes], batch[1])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what all ranks counted."""
        assert self._matrix is not None
        from matplotlib.figure import Figure  # costs a second, as does scikit-learn
        from sklearn.metrics import ConfusionMatrixDisplay

        found = self._matrix.compute()  # gathers: every rank takes part
        if trainer.is_global_zero:
            figure = Figure(figsize=(6, 5), layout="constrained")
            display = ConfusionMatrixDisplay(found.cpu().numpy())
            values = ".2f" if self.shares else "d"
            display.plot(ax=figure.subplots(), cmap="Blues", values_format=values)
            publish(figure, trainer, "confusion.png", "test/confusion")
