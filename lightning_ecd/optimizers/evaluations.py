"""What an update may ask for: evaluations of the loss."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from lightning_ecd.kernels import Number

#: Evaluates at the current `x`, refreshes `g`, returns the loss.
Evaluate = Callable[[], Number]


class Value(Protocol):
    """Evaluates a loss at many points at once, moving no running statistics."""

    @property
    def stateless(self) -> bool:
        """Whether the closure, too, moves no running state of the network."""

    def __call__(
        self,
        points: Tensor,
        gradients: bool = False,
        parts: Sequence[int] | None = None,
        draws: int | None = None,
    ) -> Any:
        """Return losses (P,) at the rows of `points` (P, n); with `gradients` a pair.

        The second of the pair are the gradients (P, n). Point i sees mini-batch
        ``parts[i]`` of the batch, by default mini-batch i, modulo their number. With
        `draws`, a seed, dropout is the same at all points.
        """

    def slopes(self, directions: Tensor, draws: int) -> Tensor:
        """Return derivatives of the loss along the rows of `directions`, (P,).

        At the present parameters, on the first mini-batch, in forward mode.
        """
