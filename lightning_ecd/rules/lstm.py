"""The LSTM that learns to learn by gradient descent."""

import torch
from torch import Tensor, nn

from lightning_ecd.checks import at_least
from lightning_ecd.flat import Layout
from lightning_ecd.rules.features import log_and_sign
from lightning_ecd.rules.rule import Context, State, UpdateRule


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
        if factor <= 0:
            raise ValueError(f"factor must lie in (0, inf), got {factor}")
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
        zeros = x.new_zeros(*x.shape, self.hidden)
        return {name: zeros.clone() for name in ("h1", "c1", "h2", "c2")}

    def forward(  # noqa: D102
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        x = log_and_sign(grad, self.factor) if self.preproc else grad.unsqueeze(-1)
        h1, c1 = _cell(self.recurs, x, state["h1"], state["c1"])
        h2, c2 = _cell(self.recurs2, h1, state["h2"], state["c2"])
        update = self.output(h2).squeeze(-1)
        return update, {"h1": h1, "c1": c1, "h2": h2, "c2": c2}


def _cell(cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next h and c, each (..., H); torch.lstm_cell has no vmap.

    tanh g = 2 sigma(2 g) - 1, so that one pass over contiguous memory serves all four
    gates: a third less time than three sigmoids and a tanh of slices.
    """
    H = h.shape[-1]
    double = torch.ones(4 * H, dtype=h.dtype, device=h.device)
    double[2 * H : 3 * H] = 2
    rows = h.reshape(-1, H)
    gates = torch.addmm(
        (cell.bias_ih + cell.bias_hh) * double,
        x.reshape(len(rows), -1),
        cell.weight_ih.T * double,
    )
    gates = torch.addmm(gates, rows, cell.weight_hh.T * double)
    i, f, g, o = gates.view(*h.shape[:-1], 4 * H).sigmoid().chunk(4, -1)
    c = f * c + i * (2 * g - 1)
    return o * torch.tanh(c), c
