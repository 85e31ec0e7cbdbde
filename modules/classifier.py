"""Classification by any network."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError
from modules.means import Means
from modules.refusals import output_shape
from modules.task import LRSchedulerFactory, Task


class Classifier(Task):
    """Cross-entropy and accuracy of any network.

    Args:
        network: Builds the network; in a config its class_path and init_args. Its
            outputs are logits, at least as many as there are classes.
        optimizer: See `Task`.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.
        channels_last: Lay weights and images out with the channels innermost, which
            convolutions of many channels compute faster, on GPUs most of all. Draws
            of the optimizer follow the order in memory, so the bounces differ, not
            their law.
        train_accuracy: Log ``train/accuracy``, the share of right answers over an
            epoch's evaluations of the loss, each with the weights it was made at.
        top: k >= 1; above 1 log also the share of labels among the k most probable,
            ``val/top3_accuracy`` and so on.
    """

    metric_names: tuple[str, ...] = (
        "val/accuracy",
        "val/loss",
        "test/accuracy",
        "test/loss",
    )

    def __init__(
        self,
        network: Callable[[], nn.Module],
        optimizer: OptimizerCallable,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
        channels_last: bool = False,
        train_accuracy: bool = False,
        top: int = 1,
    ):
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        at_least(1, top=top)
        self.top = top
        if top > 1:
            more = tuple(f"{stage}/top{top}_accuracy" for stage in ("val", "test"))
            self.metric_names = (*self.metric_names, *more)
        self.network = network()
        self.channels_last = channels_last
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.means = Means(self.metric_names)
        self.train_accuracy = train_accuracy
        self._right: Tensor | int = 0  # of the answers in this epoch
        self._answers = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, outputs) of images (B, C, H, W)."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.network(images)

    def loss(self, batch: Any) -> Tensor:
        """Return the mean cross-entropy of (images, labels)."""
        images, labels = batch
        logits = self(images)
        if self.train_accuracy and self.in_training_step:
            self._right = self._right + (logits.detach().argmax(1) == labels).sum()
            self._answers += len(labels)
        return cross_entropy(logits, labels)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and, if it is counted, its accuracy."""
        super().on_train_epoch_end()
        if self._answers:
            right = torch.as_tensor(self._right, device=self.device, dtype=torch.float)
            self.log("train/accuracy", right / self._answers, sync_dist=True)
        self._right, self._answers = 0, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the right answers so far, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["right_answers"] = (int(self._right), self._answers)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting right answers, too."""
        super().on_load_checkpoint(checkpoint)
        self._right, self._answers = checkpoint.get("right_answers", (0, 0))

    def setup(self, stage: str) -> None:
        """Refuse a network that does not fit the images or has too few outputs."""
        data = getattr(self.trainer, "datamodule", None)
        shape, classes = getattr(data, "shape", None), getattr(data, "classes", 0)
        if shape is None:
            return
        name = type(data).__name__
        what = f"{name}'s images of shape {shape}"
        outputs = output_shape(self.network, shape, what)[-1]
        if outputs < classes:
            raise UserError(
                f"the network has {outputs} outputs, {name} has {classes} classes: set "
                f"model.network.outputs to at least {classes}"
            )

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation means."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Add a batch to the test means; return its logits (B, outputs)."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the most probable class of every image, shape (B,)."""
        return self(batch[0]).argmax(1)

    def _evaluate(self, batch: Any, stage: str) -> Tensor:
        images, labels = batch
        logits = self(images)
        right = (logits.argmax(1) == labels).float()
        values = {"accuracy": right.mean(), "loss": cross_entropy(logits, labels)}
        if self.top > 1:
            likely = logits.topk(min(self.top, logits.shape[1])).indices
            among = (likely == labels[:, None]).any(1).float()
            values[f"top{self.top}_accuracy"] = among.mean()
        for name, value in values.items():
            self.means.log(self, f"{stage}/{name}", value, len(labels))
        return logits
