"""Refusals at start-up: settings that would make an optimizer silently wrong."""

import warnings
from typing import Any

from torch.optim import Optimizer

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import Descent, hyperparameters_of, traits_of

_DESCENT_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")


def refuse_incompatible(trainer: Any, optimizer: Optimizer, minibatches: int) -> None:
    """Compare the Trainer's settings with what the optimizer stands.

    Args:
        trainer: A Lightning Trainer.
        optimizer: The optimizer it will drive.
        minibatches: Parts that the task cuts a batch into.

    Raises:
        UserError: For a setting that would make the optimizer silently wrong; it
            names the option and what to do.
    """
    traits, name = traits_of(type(optimizer)), type(optimizer).__name__
    hyperparameters = hyperparameters_of(optimizer)
    evaluations = traits.count("evaluations", hyperparameters)
    needed = traits.count("minibatches", hyperparameters)

    k = trainer.accumulate_grad_batches
    if k > 1 and (evaluations != 1 or not traits.accumulation):
        raise UserError(
            f"trainer.accumulate_grad_batches={k} does not work with {name}, which "
            f"evaluates {evaluations} times per step: set it to 1 and enlarge "
            "data.batch_size"
        )
    precision = trainer.precision
    if "16-mixed" == precision and not traits.scaler:
        raise UserError(
            f"trainer.precision=16-mixed does not work with {name}, which needs the "
            "unscaled loss: use bf16-mixed or 32-true"
        )
    if isinstance(optimizer, Descent) and precision not in _DESCENT_PRECISIONS:
        if precision != "16-mixed":
            raise UserError(
                f"trainer.precision={precision} does not work with {name}: use one of "
                + ", ".join(_DESCENT_PRECISIONS)
            )
    if precision == "bf16-true" and not traits.bf16:
        raise UserError(
            f"trainer.precision=bf16-true does not work with {name}: use bf16-mixed"
        )
    if trainer.world_size > 1 and not traits.ddp:
        raise UserError(
            f"trainer.devices: {name} does not work on {trainer.world_size} "
            "processes: use one device"
        )
    strategy = type(trainer.strategy).__name__
    sharded = any(word in strategy for word in ("FSDP", "DeepSpeed", "ModelParallel"))
    if sharded and isinstance(optimizer, Descent):
        raise UserError(
            f"trainer.strategy: {name} keeps all parameters in one vector, which "
            f"{strategy} would shard: use ddp"
        )
    if minibatches not in (1, needed):
        raise UserError(
            f"model.minibatches={minibatches} does not suit {name}: use {needed}, or 1 "
            "to re-use the batch"
        )
    if trainer.gradient_clip_val is not None and traits.clipping != "fine":
        warnings.warn(
            f"trainer.gradient_clip_val with {name}: {traits.clipping}", stacklevel=2
        )
