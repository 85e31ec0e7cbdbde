"""Refusals at start-up: settings that do not go together."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
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


def output_shape(
    network: nn.Module, shape: Sequence[int], what: str
) -> tuple[int, ...]:
    """Return the shape of what a network makes of one sample, a batch of one.

    The network is left as it was: no statistics move, and no mask is drawn.

    Args:
        network: The network.
        shape: Of a sample.
        what: The samples, in words for the refusal.

    Raises:
        UserError: If the network does not take such a sample.
    """
    like = next(network.parameters())
    sample = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            return tuple(network(sample).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        inputs = f"set model.network.inputs to {shape[0]} " if len(shape) == 1 else ""
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the network does not take {what}: {inputs}({reason})"
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def refuse_misfit(network: nn.Module, dimensions: int, what: str) -> None:
    """Refuse a network that does not turn (B, d) into (B, 1).

    Args:
        network: The network.
        dimensions: d.
        what: See `output_shape`.

    Raises:
        UserError: If it does not.
    """
    shape = output_shape(network, (dimensions,), what)
    if shape != (1, 1):
        raise UserError(
            f"the network has outputs of shape {shape[1:]}, not one number: set "
            "model.network.outputs to 1"
        )
