"""Averages of weights along a run: stochastic weight averaging, the last epochs."""

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.swa_utils import update_bn

from lightning_ecd.callbacks.checkpoint import Checkpoints, WholeFiles
from lightning_ecd.callbacks.publishing import publish, run_folder
from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError

State = dict[str, Tensor]


class WeightAverage(WeightAveraging):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Once there is a mean, validation and checkpoints see it, with the mean of the
    BatchNorm statistics; the optimizer goes on from its own weights, and its learning
    rate is left alone. When the run ends, the module takes over the mean, BatchNorm
    statistics are estimated anew in one pass over the training batches, and the
    result is written to ``checkpoints/average.ckpt``.

    Args:
        start_epoch: The first epoch whose end counts; epochs are counted from 1.
        update_batchnorm: Estimate BatchNorm statistics anew at the end of the run,
            on each rank from its own batches.

    Note:
        Lightning's StochasticWeightAveraging changes the learning rate, and its
        WeightAveraging validates, saves and hands over the initial weights as long as
        nothing has been averaged.

    Reference:
        P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson, "Averaging
        weights leads to wider optima and better generalization", UAI 2018,
        arXiv 1803.05407.
    """

    def __init__(self, start_epoch: int = 161, update_batchnorm: bool = True):
        at_least(1, start_epoch=start_epoch)
        super().__init__()
        self.start_epoch = start_epoch
        self.update_batchnorm = update_batchnorm

    @property
    def started(self) -> bool:
        """Whether there is a mean."""
        return self._average_model is not None and bool(self._average_model.n_averaged)

    def should_update(
        self, step_idx: int | None = None, epoch_idx: int | None = None
    ) -> bool:
        """Return whether the end of an epoch, here counted from 0, counts."""
        return epoch_idx is not None and epoch_idx + 1 >= self.start_epoch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a run that ends before there is anything to average."""
        last = trainer.max_epochs
        if trainer.fast_dev_run or last in (None, -1):  # type: ignore[attr-defined]
            return
        if self.start_epoch > last:
            raise UserError(
                f"WeightAverage.start_epoch is {self.start_epoch}, but the run ends "
                f"after {last} epochs: set one of it and trainer.max_epochs"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the end of an epoch, unless max_steps cut it."""
        if trainer.is_last_batch:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Validate the mean."""
        if self.started:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Go back to the weights of the optimizer."""
        if self.started:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module the mean."""
        if not self.started or _interrupted(trainer):
            return
        super().on_train_end(trainer, pl_module)
        if self.update_batchnorm:
            batches = _inputs(trainer, trainer.train_dataloader)
            with trainer.precision_plugin.forward_context():
                update_bn(islice(batches, int(trainer.num_training_batches)), pl_module)
        _save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the mean into the checkpoint, beside the weights of the optimizer."""
        if self.started:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from both."""
        if self._average_model is not None and "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class LastAverage(Callback):
    """Accuracy of the mean of the last k epochs' weights, over k = 1, ..., `epochs`.

    The weights at the end of each of the last epochs, BatchNorm statistics included,
    lie as files in the folder ``epochs`` of the run, so that memory holds one running
    sum whatever k. When the run ends, the curve is written to ``average.csv`` and
    ``average.png`` in the run's folder and to TensorBoard (with k as the step).

    For tasks whose batches are (inputs, labels) and whose output is logits.

    Args:
        epochs: The largest k, and so the number of files that are kept.
        final: k of the mean that the module ends up with and that is written to
            ``checkpoints/average.ckpt``; 1: the last weights, as they are.
        part: "test" or "val": what the accuracy is measured on. Choosing k by a
            curve on the test set, as is published for ECDSep, flatters the result.

    Reference:
        G. B. De Luca, A. Gatti, E. Silverstein, "Improving energy conserving descent
        for machine learning: theory and practice", arXiv 2306.00352.
    """

    def __init__(
        self, epochs: int = 49, final: int = 1, part: Literal["test", "val"] = "test"
    ):
        at_least(1, epochs=epochs)
        if not 1 <= final <= epochs:
            raise ValueError(f"final must be in [1, {epochs}], got {final}")
        if part not in ("test", "val"):
            raise ValueError(f"part must be test or val, got {part!r}")
        self.epochs, self.final, self.part = epochs, final, part

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without the data that the accuracy is measured on."""
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and data is None:
            raise UserError("LastAverage needs a data module")
        if stage == "fit" and self.part == "val" and not data.val_dataloader():
            raise UserError("LastAverage.part is val, but data.val_size is 0")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights of a finished epoch, and no more than `epochs` of them."""
        ignored = trainer.fast_dev_run or not trainer.is_last_batch  # type: ignore[attr-defined]
        if ignored or not trainer.is_global_zero:
            return
        now, folder = trainer.current_epoch + 1, _folder(trainer)
        file = folder / f"{now:06d}.ckpt"
        WholeFiles().save_checkpoint({"state_dict": pl_module.state_dict()}, file)
        for other in folder.glob("*.ckpt"):  # later ones: before an earlier resuming
            if not now - self.epochs < int(other.stem) <= now:
                other.unlink()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, write and draw the curve."""
        trainer.strategy.barrier()
        folder = trainer.strategy.broadcast(_folder(trainer))  # of the one that wrote
        files = sorted(folder.glob("*.ckpt"), reverse=True)
        if trainer.fast_dev_run or _interrupted(trainer) or not files:  # type: ignore[attr-defined]
            return
        trainer.datamodule.setup("validate" if self.part == "val" else "test")  # type: ignore[attr-defined]
        accuracies, final = [], {}
        for k, mean in enumerate(suffix_means(files), 1):
            if k <= self.final:
                final = mean
            pl_module.load_state_dict(mean)
            accuracies.append(self._accuracy(trainer, pl_module))
        pl_module.load_state_dict(final)
        if self.final > 1:
            _save(trainer)
        if trainer.is_global_zero:
            self._write(trainer, accuracies)

    def _accuracy(self, trainer: Trainer, module: LightningModule) -> float:
        """Return the fraction of right answers, over all ranks."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        test = self.part == "test"
        loader = data.test_dataloader() if test else data.val_dataloader()
        limit = trainer.limit_test_batches if test else trainer.limit_val_batches
        limit = limit if isinstance(limit, int) else int(limit * len(loader))
        counts = torch.zeros(2, dtype=torch.float64, device=module.device)
        training = module.training
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in islice(loader, limit):
                images, labels = trainer.strategy.batch_to_device(batch)
                counts[0] += (module(images).argmax(1) == labels).sum()
                counts[1] += len(labels)
        module.train(training)
        right, samples = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return right / samples

    def _write(self, trainer: Trainer, accuracies: Sequence[float]) -> None:
        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "average.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["k", f"{self.part}/accuracy"])
            table.writerows(enumerate(accuracies, 1))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for k, value in enumerate(accuracies, 1):
                    name = f"average/{self.part}_accuracy"
                    logger.experiment.add_scalar(name, value, k)
        from lightning_ecd.figures import average_curve  # matplotlib costs a second

        figure = average_curve(accuracies, self.part)
        publish(figure, trainer, "average.png", "average/curve", folder)


def suffix_means(files: Sequence[Path]) -> Iterator[State]:
    """Yield the mean of the first file, of the first two, and so on.

    Args:
        files: Checkpoints of one network, the latest first.

    Returns:
        State dictionaries, all tensors on the CPU; sums are in float64, and integers
        such as BatchNorm's count of batches are the latest ones.
    """
    sums: State = {}
    latest: State = {}
    for k, file in enumerate(files, 1):
        state = WholeFiles().load_checkpoint(file, "cpu")["state_dict"]
        latest = latest or state
        for name, value in state.items():
            if value.is_floating_point():
                sums[name] = sums.get(name, 0) + value.double()
        yield {
            name: (sums[name] / k).to(value.dtype) if name in sums else value
            for name, value in latest.items()
        }


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "epochs"


def _interrupted(trainer: Trainer) -> bool:
    """Return whether a signal ended the run, which will be resumed."""
    callbacks = trainer.checkpoint_callbacks
    return any(isinstance(c, Checkpoints) and c.interrupted for c in callbacks)


def _inputs(trainer: Trainer, loader: Any) -> Iterator[Tensor]:
    """Yield what the network sees of every batch."""
    for batch in loader:
        yield trainer.strategy.batch_to_device(batch)[0]


def _save(trainer: Trainer) -> None:
    """Write the module as it is."""
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        file = Path(trainer.default_root_dir) / "checkpoints" / "average.ckpt"
        trainer.save_checkpoint(file, weights_only=True)
