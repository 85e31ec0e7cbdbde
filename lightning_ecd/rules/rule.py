"""What a learned update rule is: a small network applied to every coordinate."""

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_ecd.flat import Layout

#: What a rule remembers, by name. A tensor that holds k numbers of every coordinate
#: has shape (..., n, k).
State = dict[str, Tensor]


class Context(NamedTuple):
    """What a rule may look at beside the gradient.

    Attributes:
        x: The parameters, shape (..., n).
        loss: At x, shape (...).
        step: Number of the step, 0 at the first, shape (...) or ().
        layout: Shapes of the tensors within a vector of n.
    """

    x: Tensor
    loss: Tensor
    step: Tensor
    layout: Layout


class UpdateRule(nn.Module):
    r"""A network m that turns a gradient and a private state into an update.

    .. math:: (u_t, h_{t+1}) = m(\nabla f(\theta_t), h_t; \varphi), \qquad
        \theta_{t+1} = \theta_t + \Delta t\, u_t

    Leading dimensions, such as one for many problems at once, pass through. Rules are
    pure functions of weights and arguments: `torch.func.functional_call` and `vmap`
    over weights work.

    Args:
        settings: The arguments of the subclass, kept so that a weights file can name
            them.
    """

    #: Numbers that the state holds of every coordinate.
    state_size: int
    #: Parts of the state that do not have an entry for every coordinate.
    uneven: tuple[str, ...] = ()

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings

    @abstractmethod
    def initial(self, x: Tensor, layout: Layout) -> State:
        """Return the state before the first step.

        Args:
            x: The parameters, shape (..., n); dtype and device are those of the state.
            layout: Of the tensors within a vector of n.
        """

    def pieces(self, name: str, layout: Layout) -> list[int]:
        """Return how many entries every tensor has in a part of the state."""
        return layout.sizes

    @abstractmethod
    def forward(
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        """Return update and next state.

        Args:
            grad: Shape (..., n).
            state: As `initial` or the last call returned it.
            context: Parameters, loss, step and layout.

        Returns:
            The update u, shape (..., n), to be scaled and added; the next state.
        """
