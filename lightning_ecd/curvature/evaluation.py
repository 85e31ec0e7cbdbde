"""A model as a pure function of its parameters and a batch."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and its modules back in their own at the end.

    BatchNorm uses its running statistics and nothing is dropped. Recurrent layers do
    without cuDNN's kernels, which have no second derivative.

    Args:
        model: A network or a task.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module, _ in modes):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def stateless(
    model: nn.Module, loss: Callable[[Any], Tensor]
) -> Callable[[Any], Tensor]:
    """Return the loss without memory of former batches.

    Args:
        model: Modules of it that carry a state from batch to batch have a method
            ``forget(training)``.
        loss: Of a batch.
    """
    carriers = [m for m in model.modules() if callable(getattr(m, "forget", None))]
    if not carriers:
        return loss

    def forget() -> None:
        for module in carriers:
            module.forget(False)  # type: ignore[operator]

    def alone(batch: Any) -> Tensor:
        forget()
        value = loss(batch)
        forget()
        return value

    return alone
