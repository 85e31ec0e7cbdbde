"""The optimizer shaped like a port-Hamiltonian system, as it was published."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ecd.checks import above, at_least
from lightning_ecd.flat import Layout
from lightning_ecd.rules.features import log_and_sign
from lightning_ecd.rules.rule import Context, State, UpdateRule


class HNNRule(UpdateRule):
    r"""One evaluation of a learned vector field in (q, p), and linear read-outs.

    q are features of the gradient, p those of a scalar state s, d numbers each. With
    networks v and g (the force and the port), a dissipation D and the inverse mass
    :math:`M^{-1} = L L^T`:

    .. math::
        a = v(q), \quad (D_q, D_p) = D (a, p), \quad
        \dot q = p - D_q, \quad \dot p = M^{-1} (-a - D_p + g(q))

    .. math::
        u = w \cdot (\dot q, q), \qquad s \leftarrow w_1 \cdot (\dot q, \dot p) + b_1,
        \quad s \leftarrow s / |s| \text{ if } norm

    19 weights with d = 1, 55 with d = 2. The weights have the names of the released
    code: ``gde.v``, ``gde.g``, ``gde.D``, ``gde.L``, ``output``, ``output1``;
    ``gde.L.bias`` is never used.

    Args:
        preproc: d = 2: `log_and_sign` of gradient and state; False: d = 1, both as
            they are.
        norm: Divide the state by its Euclidean norm over each parameter tensor.
        factor: P of the features, > 0.
        state_grad: Differentiate through the state's features when the rule is
            trained. False: as published with `preproc`, where 31 of the 55 weights
            never train.
        epsilon: The least norm to divide by, >= 0; 0: as published, a state of zeros
            becomes nan.

    Note:
        This is the released code, whose departures from a port-Hamiltonian system are
        kept: v is no gradient, D is not positive semidefinite, the momentum stands for
        the velocity, and there is no time step. `PortHamiltonianRule` has none of
        them.

    Reference:
        A. Timofeev, A. Afonin, Y. Liu, "Can we learn gradients by Hamiltonian Neural
        Networks?", arXiv 2111.00565.
    """

    state_size = 1

    def __init__(
        self,
        preproc: bool = False,
        norm: bool = False,
        factor: float = 10.0,
        state_grad: bool = True,
        epsilon: float = 1e-30,
    ):
        super().__init__(
            preproc=preproc,
            norm=norm,
            factor=factor,
            state_grad=state_grad,
            epsilon=epsilon,
        )
        above(0, factor=factor)
        at_least(0, epsilon=epsilon)
        d = 2 if preproc else 1
        self.gde = nn.ModuleDict(
            {
                "v": _two_layers(d),
                "g": _two_layers(d),
                "D": nn.Linear(2 * d, 2 * d, bias=False),
                "L": nn.Linear(d, d),
            }
        )
        self.output = nn.Linear(2 * d, 1, bias=False)
        self.output1 = nn.Linear(2 * d, 1)
        self.preproc, self.norm, self.factor = preproc, norm, factor
        self.state_grad, self.epsilon = state_grad, epsilon

    def initial(self, x: Tensor, layout: Layout) -> State:  # noqa: D102
        return {"s": torch.zeros_like(x)}

    def forward(  # noqa: D102
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        s = state["s"]
        if self.preproc and not self.state_grad:
            s = s.detach()
        q, p = self._features(grad), self._features(s)
        weight, bias = self._first_layers()
        hidden = F.relu(torch.addmm(bias, weight, q))
        of_hidden, of_p, of_q, of_one = self._read_outs()
        both = torch.addmm(of_one, of_hidden, hidden)
        both = torch.addmm(torch.addmm(both, of_p, p), of_q, q)
        update, s = both.view(2, *grad.shape)
        return update, {"s": self._normalized(s, context.layout) if self.norm else s}

    def _first_layers(self) -> tuple[Tensor, Tensor]:
        """Return weight (2 d, d) and bias (2 d, 1) of the hidden units of v and g."""
        gde: Any = self.gde
        layers = gde["v"][0], gde["g"][0]
        bias = torch.cat([layer.bias for layer in layers])
        return torch.cat([layer.weight for layer in layers]), bias.unsqueeze(1)

    def _read_outs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the factors of hidden units, p, q and 1 in (u, s), two rows each.

        Behind the hidden units all is linear: the formula runs backwards over these
        two rows, in place of forwards over as many columns as there are coordinates.
        """
        gde: Any = self.gde
        v, g, D, L = gde["v"][2], gde["g"][2], gde["D"].weight, gde["L"].weight
        u_dq, u_q = self.output.weight.chunk(2, 1)
        s_dq, s_dp = self.output1.weight.chunk(2, 1)
        none = torch.zeros_like(u_q)
        of_dq, of_q = torch.cat([u_dq, s_dq]), torch.cat([u_q, none])
        of_force = torch.cat([none, s_dp]) @ (L @ L.mT)  # of -a - D_p + g
        damped = torch.cat([of_dq, of_force], 1) @ D
        of_Da, of_Dp = damped.chunk(2, 1)
        of_a, of_p = -of_force - of_Da, of_dq - of_Dp
        of_hidden = torch.cat([of_a @ v.weight, of_force @ g.weight], 1)
        of_one = of_a @ v.bias + of_force @ g.bias + F.pad(self.output1.bias, (1, 0))
        return of_hidden, of_p, of_q, of_one.unsqueeze(1)

    def _features(self, x: Tensor) -> Tensor:
        """Return the features of all coordinates as d long rows (d, N)."""
        x = x.flatten()
        return log_and_sign(x, self.factor, 0) if self.preproc else x.unsqueeze(0)

    def _normalized(self, s: Tensor, layout: Layout) -> Tensor:
        """Return s (..., n) divided by its norm over every tensor."""
        pieces = layout.split(s)
        return torch.cat(
            [F.normalize(piece, dim=-1, eps=self.epsilon) for piece in pieces], -1
        )


def _two_layers(d: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
