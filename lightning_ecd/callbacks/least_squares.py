"""What callbacks about least squares ask of a run."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from lightning_ecd.errors import UserError
from lightning_ecd.theory import jacobian_kernel, layer_kernel

#: Samples whose outputs are computed at once.
CHUNK = 1000


def training_samples(loader: Any) -> tuple[Tensor, Tensor]:
    """Return all training samples as the network sees them."""
    x, y = (tensor[loader.indices.to(tensor.device)] for tensor in loader.tensors)
    return (x if loader.prepare is None else loader.prepare(x)), y


def kernel_by_layers(network: nn.Module, X: Tensor) -> Tensor | None:
    """Return the kernel (N, N); None for layers not linear or convolutional."""
    try:
        return layer_kernel(network, X)
    except UserError:
        return None


def kernel_of(task: LightningModule, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return kernel and output error, in double precision throughout."""
    task = task.double()
    network: nn.Module = task.network  # type: ignore[assignment]
    X = X.double()
    K = kernel_by_layers(network, X)
    if K is None:
        K = jacobian_kernel(network, X)
    with torch.no_grad():
        f = torch.cat([task(x) for x in X.split(CHUNK)])
    return K, f - y.double()


def plain_sgd(trainer: Trainer, who: str) -> dict[str, Any]:
    """Return the group of an optimizer that is SGD with momentum and nothing else."""
    (optimizer,) = trainer.optimizers
    groups = optimizer.param_groups
    require_plain_sgd(type(optimizer).__name__, groups[0], len(groups), who)
    return groups[0]


def require_plain_sgd(
    name: str, group: Mapping[str, Any], groups: int, who: str
) -> None:
    """Refuse an optimizer that is not SGD with momentum on one group."""
    extras = ("dampening", "nesterov", "weight_decay")
    changed = [key for key in extras if group.get(key)]
    if name not in ("SGD", "HeavyBall") or groups != 1 or changed:
        what = f" with {', '.join(changed)}" if changed else ""
        raise UserError(
            f"{who} speaks of SGD with momentum, got "
            f"{name}{what}: set model.optimizer=HeavyBall"
        )


def total_steps(trainer: Trainer, who: str) -> int:
    """Return the steps of the whole fit; refuse one without an end."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise UserError(
            f"{who} needs the number of steps: set "
            "trainer.max_steps or trainer.max_epochs"
        )
    return int(steps)


def require_regression(task: LightningModule, who: str) -> None:
    """Refuse tasks whose loss is not least squares of one output."""
    if not getattr(task, "least_squares", False):
        raise UserError(f"{who} needs modules.Regression, got {type(task).__name__}")


def require_independent(trainer: Trainer, data: Any, who: str) -> None:
    """Refuse other mini-batches than the theory's."""
    order = getattr(data, "order", None)
    if order != "independent":
        raise UserError(
            f"{who} needs independent mini-batches, got data.order={order}: set "
            "data.order=independent"
        )
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"{who} needs one mini-batch a step: set "
            "trainer.accumulate_grad_batches=1 and enlarge data.batch_size"
        )


def whole_loss(task: Any, X: Tensor, y: Tensor) -> Tensor:
    """Return half the mean squared error over all samples, float64."""
    with torch.no_grad():
        parts = zip(X.split(CHUNK), y.split(CHUNK), strict=True)
        sums = [(task(x) - part).square().sum().double() for x, part in parts]
    return torch.stack(sums).sum() / (2 * len(y))
