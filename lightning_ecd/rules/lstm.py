"""The LSTM that learns to learn by gradient descent."""

import torch
from torch import Tensor, nn

from lightning_ecd.checks import above, at_least
from lightning_ecd.flat import Layout
from lightning_ecd.rules.features import log_and_sign
from lightning_ecd.rules.rule import Context, State, UpdateRule

#: Of the state, each of shape (..., n, H) but (H, ..., n) in memory: the gates are
#: then long rows, over which elementwise functions pass without gaps.
_PARTS = ("h1", "c1", "h2", "c2")


class LSTMRule(UpdateRule):
    r"""Two LSTM cells and a linear read-out, one state per coordinate.

    .. math::
        (h_1, c_1) \leftarrow \mathrm{LSTM}_1(x, h_1, c_1), \quad
        (h_2, c_2) \leftarrow \mathrm{LSTM}_2(h_1, h_2, c_2), \quad
        u = w \cdot h_2 + b

    where x is the gradient, or its `log_and_sign`. With 20 units 5221 weights, 5301
    with features. The weights have the names of the released code: ``recurs``,
    ``recurs2``, ``output``.

    Args:
        preproc: Show `log_and_sign` of the gradient instead of the gradient.
        factor: P of these features, > 0.
        hidden: Units H of a cell, at least 1.

    Reference:
        M. Andrychowicz et al., "Learning to learn by gradient descent by gradient
        descent", NeurIPS 2016, arXiv 1606.04474.
    """

    def __init__(self, preproc: bool = False, factor: float = 10.0, hidden: int = 20):
        super().__init__(preproc=preproc, factor=factor, hidden=hidden)
        above(0, factor=factor)
        at_least(1, hidden=hidden)
        self.recurs = nn.LSTMCell(2 if preproc else 1, hidden)
        self.recurs2 = nn.LSTMCell(hidden, hidden)
        self.output = nn.Linear(hidden, 1)
        bound = hidden**-0.5
        for weight in self.output.parameters():
            nn.init.uniform_(weight, -bound, bound)
        self.preproc, self.factor, self.hidden = preproc, factor, hidden
        self.state_size = 4 * hidden

    def initial(self, x: Tensor, layout: Layout) -> State:  # noqa: D102
        return {name: _behind(x.new_zeros(self.hidden, *x.shape)) for name in _PARTS}

    def forward(  # noqa: D102
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        x = log_and_sign(grad, self.factor, 0) if self.preproc else grad.unsqueeze(0)
        h1, c1, h2, c2 = (state[name].movedim(-1, 0).flatten(1) for name in _PARTS)
        h1, c1 = _cell(self.recurs, x.flatten(1), h1, c1)
        h2, c2 = _cell(self.recurs2, h1, h2, c2)
        update = self.output.weight @ h2 + self.output.bias
        rows = zip(_PARTS, (h1, c1, h2, c2), strict=True)
        after = {name: _behind(h.view(-1, *grad.shape)) for name, h in rows}
        return update.view(grad.shape), after


def _behind(rows: Tensor) -> Tensor:
    """Return (H, ..., n) as a view (..., n, H)."""
    return rows.movedim(0, -1)


def _cell(cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next h and c, each (H, N), for x (inputs, N).

    In one product, [W, U, b] [x; h; 1]; torch.lstm_cell has no vmap and takes columns.
    """
    bias = (cell.bias_ih + cell.bias_hh).unsqueeze(1)
    weight = torch.cat([cell.weight_ih, cell.weight_hh, bias], 1)
    gates = weight @ torch.cat([x, h, torch.ones_like(x[:1])])
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c
