"""A learning-rate schedule whose first steps may rise."""

import math
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_ecd.checks import at_least, one_of

Rise = Literal["linear", "exp"]
Course = Literal["constant", "piecewise", "cosine", "exponential"]


class WarmUp(LRScheduler):
    r"""A rising learning rate, then one of four courses over the epochs.

    With s steps of warm-up, the rate η of step t = 0, 1, 2 ... is multiplied by

    .. math:: x = (t + 1)/s \quad\text{or}\quad 2^x - 1 \qquad\text{for } t < s,

    and afterwards, in epoch e = 0, 1, 2 ... up to E, by

    ===========  ===================================================
    constant     1
    piecewise    1 while e <= E/2, 0.1 while e <= 3E/4, then 0.01
    cosine       0.01 + 0.99 (1 + cos(πe/E))/2
    exponential  0.25^(e/E)
    ===========  ===================================================

    Counts steps: set ``scheduler_interval`` to "step".

    Args:
        optimizer: Whose groups' `lr` it sets.
        steps_per_epoch: Steps in an epoch, >= 1.
        epochs: E >= 1.
        course: What follows the warm-up.
        warmup: Steps s >= 0 of the warm-up.
        rise: "linear" or "exp".
        last_epoch: Steps made; -1 at the start.

    Note:
        In the released code the warm-up starts with an enormous rate and falls.

    Reference:
        The code of F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network
        training in low dimensional random bases", NeurIPS 2020, arXiv 2011.04720.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps_per_epoch: int,
        epochs: int,
        course: Course = "constant",
        warmup: int = 0,
        rise: Rise = "linear",
        last_epoch: int = -1,
    ):
        at_least(1, steps_per_epoch=steps_per_epoch, epochs=epochs)
        at_least(0, warmup=warmup)
        one_of(get_args(Course), course=course)
        one_of(get_args(Rise), rise=rise)
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.course, self.warmup, self.rise = course, warmup, rise
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Return what the learning rate of a step is multiplied by."""
        if step < self.warmup:
            x = (step + 1) / self.warmup
            return x if self.rise == "linear" else 2**x - 1
        part = min(step // self.steps_per_epoch / self.epochs, 1.0)
        if self.course == "piecewise":
            return 1.0 if part <= 0.5 else 0.1 if part <= 0.75 else 0.01
        if self.course == "cosine":
            return 0.01 + 0.99 * (1 + math.cos(math.pi * part)) / 2
        return 0.25**part if self.course == "exponential" else 1.0

    def get_lr(self) -> list[Any]:
        """Return the learning rates of all groups in the step to come."""
        factor = self.factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]
