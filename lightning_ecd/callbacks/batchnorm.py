"""BatchNorm statistics that fit the weights they are validated with."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_ecd.errors import UserError

Mode = Literal["exact", "random", "evaluation"]
#: Samples in a batch of the released Lua program.
EVALUATION_BATCH = 1024


class BatchNormEstimate(Callback):
    """Estimates BatchNorm's running statistics anew before validation and test.

    Dropout and excursions of the optimizer, such as the inner loop of Entropy-SGD,
    distort what BatchNorm records during training. Before every validation and test
    the network therefore sees data once more, normalising each batch by itself, with
    dropout off and without gradients. Nothing but the running statistics changes:
    weights, optimizer and random states are those of a run without this callback, and
    a resumed run equals an uninterrupted one.

    For tasks whose batches start with the inputs.

    Args:
        mode: "exact": the mean over one pass of all training batches, each training
            sample once, in the mini-batches that an evaluation of the loss sees;
            "random": as many random training batches, drawn with replacement, move
            the running statistics with the momentum of the layer (0.1), as in the
            PyTorch program of Entropy-SGD; "evaluation": batches of 1024 of the set
            that is about to be evaluated do so, as in its Lua program. The latter is
            transductive: an answer then depends on the other images of the test set,
            and published errors of Entropy-SGD include this advantage.

    Note:
        Augmentation acts as in training. ``trainer.limit_train_batches`` (for
        "evaluation" that of the set) limits the pass too. Ranks estimate from their
        own batches and take the mean. List it after `WeightAverage`, so that it
        sees the averaged weights.

        The running variance is, as always, the mean variance within a batch. Batches
        of one pass differ in size by at most one sample, so their plain mean is the
        mean over samples.

    Reference:
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838.
    """

    def __init__(self, mode: Mode = "exact"):
        if mode not in ("exact", "random", "evaluation"):
            raise ValueError(f"mode must be exact, random or evaluation, got {mode!r}")
        self.mode = mode

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a run without a data module; warn if there is nothing to estimate."""
        if getattr(trainer, "datamodule", None) is None:
            raise UserError("BatchNormEstimate needs a data module")
        if not _norms(pl_module):
            warnings.warn(
                "BatchNormEstimate does nothing: the network has no BatchNorm layer "
                "with running statistics",
                stacklevel=2,
            )

    # Here and not in on_validation_start: then WeightAverage has swapped the weights.
    def on_validation_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Estimate, unless this is the sanity check."""
        if not trainer.sanity_checking:
            self._estimate(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate."""
        self._estimate(trainer, pl_module)

    def _estimate(self, trainer: Trainer, module: LightningModule) -> None:
        norms = _norms(module)
        if not norms:
            return
        with (
            isolate_rng(),
            torch.no_grad(),
            _only_normalising(module, norms, anew=self.mode == "exact"),
        ):
            for batch in self._batches(trainer):
                inputs = trainer.strategy.batch_to_device(batch)[0]
                with trainer.precision_plugin.forward_context():
                    module(inputs)
        if trainer.world_size > 1:
            for norm in norms:
                for statistic in (norm.running_mean, norm.running_var):
                    assert statistic is not None
                    mean = trainer.strategy.reduce(statistic, reduce_op="mean")
                    statistic.copy_(mean)  # in place: inference tensors must not stay

    def _batches(self, trainer: Trainer) -> Iterator[Any]:
        """Yield what the statistics are estimated from."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.mode != "evaluation":
            if trainer.state.fn != "fit":
                data.setup("fit")
            loaders, limit = data.train_dataloader(), trainer.limit_train_batches
        elif trainer.testing:
            loaders, limit = data.test_dataloader(), trainer.limit_test_batches
        else:
            loaders, limit = data.val_dataloader(), trainer.limit_val_batches
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            loader = self._cut(loader, trainer.global_step)
            most = limit if isinstance(limit, int) else int(limit * len(loader))
            yield from islice(loader, most)

    def _cut(self, loader: Any, step: int) -> Any:
        """Return a fresh loader, cut into the batches that the mode asks for."""
        settings: dict[str, Any] = {"minibatches": 1, "last": "even"}
        if self.mode == "random":
            settings["order"] = "replacement"
        elif getattr(loader, "order", "") == "replacement":
            settings["order"] = "shuffled"  # each sample once
        if self.mode == "evaluation":
            settings["batch_size"] = EVALUATION_BATCH
        if not all(hasattr(loader, name) for name in settings):
            if self.mode == "exact":
                return loader
            raise UserError(
                f"BatchNormEstimate.mode={self.mode} needs a datamodules.Loader, not a "
                f"{type(loader).__name__}: use mode=exact"
            )
        for name, value in settings.items():
            setattr(loader, name, value)
        if self.mode == "random":
            loader.set_epoch(-1 - step)  # other draws than in any epoch of the training
        return loader


def _norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    found = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    return [norm for norm in found if norm.running_mean is not None]


@contextmanager
def _only_normalising(
    module: nn.Module, norms: list[_BatchNorm], anew: bool
) -> Iterator[None]:
    """Let BatchNorm layers, and no other ones, behave as in training.

    Args:
        module: That holds the layers.
        norms: The layers.
        anew: Start from nothing and take the mean over all batches.
    """
    training = {m: m.training for m in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    try:
        for norm in norms:
            norm.train()
            if anew:
                norm.reset_running_stats()
                norm.momentum = None
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for m, mode in training.items():
            m.training = mode
