"""The base of everything that is trained: a loss, and any optimizer."""

from abc import abstractmethod
from collections.abc import Callable, Sized
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LRSchedulerTypeUnion, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map

from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.optimizers import hyperparameters_of, traits_of
from modules.refusals import refuse_incompatible
from modules.values import Values, still_statistics

#: Builds a learning-rate scheduler for an optimizer.
LRSchedulerFactory = Callable[[Optimizer], LRSchedulerTypeUnion]


class Task(LightningModule):
    """A loss to be minimized by any optimizer.

    Subclasses write `loss`; training_step and the loss contract live here. An
    optimizer gets the mean loss of exactly the samples its gradient came from: over
    all micro-batches under gradient accumulation (also in the epoch's short last
    group), over all ranks, and independent of logging.

    Args:
        optimizer: Builds the optimizer; in a config its class_path and init_args, on
            the command line the name of a registered optimizer or an import path.
        minibatches: Mini-batches K that make up a batch of the loader: evaluation i
            of a step sees part i mod K. None: as many as the optimizer asks for; 1:
            all evaluations see the same batch.
        scheduler: Builds the learning-rate scheduler.
        scheduler_interval: "epoch" or "step": when the scheduler advances.
        groups: Hyper-parameters of parameters whose name matches a pattern, such as
            ``{"*.bias": {"weight_decay": 0.0}}``; the first match counts.

    Note:
        Beside the loss are logged the evaluations of it so far, ``train/evaluations``,
        and the samples in them divided by those of the training set,
        ``train/effective_epochs``: what optimizers that evaluate several times per
        step are compared over.

        Frozen parameters are left out: to thaw one, add it to the optimizer as a
        group, as Lightning's BaseFinetuning does.

        Dropout masks change at every evaluation of the loss, BatchNorm statistics
        move at every one on a mini-batch of its own: not where an optimizer looks at
        the same mini-batch again.
    """

    #: What the hyper-parameter tab of TensorBoard shows.
    metric_names: tuple[str, ...] = ("train/loss",)

    def __init__(
        self,
        optimizer: OptimizerCallable,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        at_least(1, minibatches=minibatches)
        one_of(("epoch", "step"), scheduler_interval=scheduler_interval)
        super().__init__()
        self.save_hyperparameters()
        # From Python the arguments are callables, which a checkpoint that is loaded
        # as plain data could not hold; from the command line they are plain data.
        stored: tuple[Any, Any] = (self._hparams, self._hparams_initial)
        for hparams in stored:
            for name in [name for name, value in hparams.items() if callable(value)]:
                del hparams[name]
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.groups = groups
        self.minibatches = minibatches
        self.evaluations = 0
        self.samples = 0  # that all evaluations together have seen
        self._evaluation = 0  # within the step
        self.in_training_step = False  # not within `Values` or a validation
        self.batch: Any = None  # of the loader, the one being trained on
        self._values: Values | None = None
        self._losses: list[tuple[Tensor, int]] = []  # of the gradient being summed
        self._epoch_loss: Tensor | float = 0.0  # summed over the epoch's samples
        self._epoch_samples = 0

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch.

        Differentiable, works under no_grad, logs nothing, and is pure but for
        running state such as BatchNorm's.
        """

    def batch_size(self, batch: Any) -> int:
        """Return the number of samples that `loss` averages over."""
        return next(len(leaf) for leaf in tree_leaves(batch) if torch.is_tensor(leaf))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of the part of the batch that this evaluation sees."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._losses.clear()
        self.batch = batch
        if self.minibatches and self.minibatches > 1:
            batch = self.part(batch, self._evaluation % self.minibatches)
        size = self.batch_size(batch)
        seen = self._evaluation >= (self.minibatches or 1)
        self.in_training_step = True
        with still_statistics(self) if seen else nullcontext():
            loss = self.loss(batch)
        self.in_training_step = False
        self._losses.append((loss.detach(), size))
        first = self._losses[0][1]
        return loss if size == first else loss * (size / first)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Let the optimizer see the mean loss of its gradient's samples; log it."""
        assert optimizer_closure is not None
        self._evaluation = 0
        inner = getattr(optimizer, "optimizer", optimizer)
        local = getattr(inner, "local_gradients", False)

        def closure() -> Tensor:
            with self._unsynchronized() if local else nullcontext():
                optimizer_closure()
            self._evaluation += 1
            self.count(1, sum(size for _, size in self._losses))
            return self._mean_loss()

        more = {}
        if getattr(inner, "uses_values", False):
            if self._values is None or self._values.optimizer is not inner:
                self._values = Values(self, inner)
            more["value"] = self._values
        loss = optimizer.step(closure=closure, **more)
        self._evaluation = 0  # Lightning evaluates micro-batches without a step
        self.batch = None  # else it would stay in memory beside the next
        if loss is None:  # a gradient scaler hands back nothing
            loss = self._mean_loss()
        # Not in on_train_batch_end: a checkpoint may be saved before that is called.
        samples = sum(size for _, size in self._losses)
        self._epoch_loss = self._epoch_loss + loss.detach() * samples
        self._epoch_samples += samples
        trainer = self.trainer
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.global_step + 1) % every == 0:  # not counted yet
            self._log_step(loss)

    def count(self, evaluations: int, samples: int) -> None:
        """Count evaluations of the loss, and the samples that all of them saw."""
        self.evaluations += evaluations
        self.samples += samples * self.trainer.world_size

    def _unsynchronized(self) -> Any:
        """Return a context in which ranks keep their own gradients."""
        strategy = self.trainer.strategy
        block = getattr(strategy, "block_backward_sync", nullcontext)
        return block() if self.trainer.world_size > 1 else nullcontext()

    def _log_step(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            name = type(self.trainer.optimizers[0]).__name__
            raise Diverged(
                f"step {self.trainer.global_step}: the loss is {loss.item()}; "
                f"{name} has diverged"
            )
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/evaluations", float(self.evaluations))
        self._log_epochs()

    def _log_epochs(self) -> None:
        """Log the samples seen, in passes over the training set."""
        loader: Any = self.trainer.train_dataloader
        data = getattr(loader, "dataset", None)
        size = len(data) if isinstance(data, Sized) else 0
        size = getattr(loader, "samples", size)
        if size:
            self.log("train/effective_epochs", self.samples / size)

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's samples, each before its batch's step."""
        if self._epoch_samples:
            self.log("train/epoch_loss", self._epoch_loss / self._epoch_samples)
        self._epoch_loss, self._epoch_samples = 0.0, 0

    def _mean_loss(self) -> Tensor:
        """Return the mean over all samples and make the gradient match it.

        Lightning divides each micro-batch's gradient by the number k of micro-batches
        in a full group; with n_1 samples in the first and n in all of them, k n_1 / n
        makes it the gradient of the mean, however short the group or its last batch.
        """
        sizes = [size for _, size in self._losses]
        total, k = sum(sizes), self.trainer.accumulate_grad_batches
        if k * sizes[0] != total:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.mul_(k * sizes[0] / total)
        if len(sizes) == 1:
            mean = self._losses[0][0]
        else:
            mean = torch.stack([loss * (n / total) for loss, n in self._losses]).sum()
        if self.trainer.world_size > 1:
            mean = self.trainer.strategy.reduce(mean, reduce_op="mean")
        return mean

    def part(self, batch: Any, index: int) -> Any:
        """Return part `index` of `minibatches` equal parts of a batch."""
        whole, parts = self.batch_size(batch), self.minibatches or 1
        size = whole // parts
        if size == 0:
            raise UserError(
                f"a batch of {whole} samples cannot be cut into {parts} mini-batches: "
                "let data.minibatches multiply data.batch_size, or set "
                "model.minibatches=1 to see the whole batch at every evaluation"
            )
        span = slice(index * size, (index + 1) * size)
        return tree_map(
            lambda leaf: leaf[span] if torch.is_tensor(leaf) else leaf, batch
        )

    def configure_optimizers(self) -> Any:
        """Build optimizer and scheduler; refuse what the Trainer would make wrong."""
        optimizer = self.make_optimizer(self._parameter_groups())
        if self.minibatches is None:
            traits = traits_of(type(optimizer))
            hyperparameters = hyperparameters_of(optimizer)
            self.minibatches = traits.count("minibatches", hyperparameters)
        if self._trainer is not None:
            refuse_incompatible(self.trainer, optimizer, self.minibatches)
        if self.make_scheduler is None:
            return optimizer
        scheduler = self.make_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": self.scheduler_interval,
                "monitor": getattr(scheduler, "monitor", "val/loss"),
            },
        }

    def on_fit_start(self) -> None:
        """Refuse a loader that cuts its batches otherwise than the task."""
        data = getattr(self.trainer, "datamodule", None)
        given = getattr(data, "minibatches", self.minibatches)
        if given != self.minibatches:
            raise UserError(
                f"data.minibatches is {given}, but the optimizer and the task need "
                f"{self.minibatches}: set data.minibatches={self.minibatches}"
            )

    def _parameter_groups(self) -> list[Any]:
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        if not self.groups:
            return [p for _, p in named]
        members: dict[str, list[Tensor]] = {pattern: [] for pattern in self.groups}
        rest: list[Tensor] = []
        for name, p in named:
            match = [key for key in self.groups if fnmatchcase(name, key)]
            (members[match[0]] if match else rest).append(p)
        for pattern, found in members.items():
            if not found:
                raise UserError(
                    f"groups: no trainable parameter's name matches {pattern!r}; names "
                    "are " + ", ".join(name for name, _ in named)
                )
        matched = [{"params": members[key], **self.groups[key]} for key in members]
        return [*([{"params": rest}] if rest else []), *matched]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running numbers of evaluations and samples, and the summed loss."""
        checkpoint["evaluations"] = self.evaluations
        checkpoint["samples"] = self.samples
        checkpoint["epoch_loss"] = (float(self._epoch_loss), self._epoch_samples)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting and summing; take double precision before, not after."""
        if self._trainer is not None and self.trainer.precision == "64-true":
            self.double()  # Lightning would do so after the checkpoint was rounded
        self.evaluations = checkpoint.get("evaluations", 0)
        self.samples = checkpoint.get("samples", 0)
        self._epoch_loss, self._epoch_samples = checkpoint.get("epoch_loss", (0.0, 0))
