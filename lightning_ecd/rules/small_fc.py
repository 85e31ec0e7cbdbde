"""A multilayer perceptron on Adafactor's features: the strong small baseline."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ecd.checks import above, at_least
from lightning_ecd.flat import Layout
from lightning_ecd.rules.rule import Context, State, UpdateRule

#: Initial decays of momenta, second moment and factored second moments.
DECAYS = {"m": (0.9, 0.99, 0.999), "v": (0.999,), "factored": (0.9, 0.99, 0.999)}
#: Time scales of the step's features: 1, 3, 10, ..., 100000.
_SCALES = tuple(mantissa * 10.0**k for k in range(6) for mantissa in (1, 3))[:11]


class SmallFCRule(UpdateRule):
    r"""Momenta and factored second moments, read by a network of 39-32-32-2 units.

    Every tensor keeps momenta m (three decays), a second moment v and second moments
    factored into rows and columns r, c (three decays). Of a coordinate the network
    sees, each divided by its root mean square over the tensor: g, p, m, v,
    :math:`m/\sqrt v`, :math:`1/\sqrt v`, the gradient and the momenta divided by the
    factored moments, r, c and their inverse roots: 28 numbers; then 11 of the step t,
    :math:`\tanh(t/\tau - 1)`. It answers with a direction and a magnitude:

    .. math:: u = -a\, o_0\, e^{0.001\, o_1}

    The decays are learned too: :math:`\beta = 1 - (1 - \beta_0) e^{10 \delta}`, cut
    to [0, 1]. The weights have the names of the released networks: ``network.input``,
    ``network.linear_0``, ``network.output``.

    Args:
        hidden: Units of either hidden layer, at least 1.
        step_mult: a > 0, what the direction is multiplied with: 0.001, or 0.01.

    Note:
        Tensors of two and more dimensions are factored over the largest two (the later
        of equal ones counts as larger), others keep their second moments whole.

    Reference:
        L. Metz et al., "Practical tradeoffs between memory, compute, and performance
        in learned optimizers", CoLLAs 2022, arXiv 2203.11860.
    """

    state_size = 4  # the factors are of the order of the square root
    uneven = ("rows", "columns")

    def __init__(self, hidden: int = 32, step_mult: float = 1e-3):
        super().__init__(hidden=hidden, step_mult=step_mult)
        at_least(1, hidden=hidden)
        above(0, step_mult=step_mult)
        self.step_mult = step_mult
        self.network = nn.ModuleDict(
            {
                "input": _linear(39, hidden),
                "linear_0": _linear(hidden, hidden),
                "output": _linear(hidden, 2),
            }
        )
        # buffers, on the device once; in double precision whatever the weights are
        for name, numbers in {"scales": _SCALES, **DECAYS}.items():
            exact = torch.tensor(numbers, dtype=torch.float64)
            self.register_buffer(f"of_{name}", exact, persistent=False)
        self.decays = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(len(b))) for name, b in DECAYS.items()}
        )

    def initial(self, x: Tensor, layout: Layout) -> State:  # noqa: D102
        rows, columns = zip(*map(_factor_sizes, layout.shapes), strict=True)
        return {
            "m": x.new_zeros(*x.shape, 3),
            "v": torch.zeros_like(x),
            "rows": x.new_zeros(*x.shape[:-1], sum(rows), 3),
            "columns": x.new_zeros(*x.shape[:-1], sum(columns), 3),
        }

    def pieces(self, name: str, layout: Layout) -> list[int]:  # noqa: D102
        if name in self.uneven:
            return [_factor_sizes(shape)[name == "columns"] for shape in layout.shapes]
        return layout.sizes

    def forward(  # noqa: D102
        self, grad: Tensor, state: State, context: Context
    ) -> tuple[Tensor, State]:
        layout, g = context.layout, grad
        beta = {name: self._decay(name) for name in DECAYS}
        m = state["m"].lerp(g.unsqueeze(-1), 1 - beta["m"])
        v = state["v"].lerp(g * g, 1 - beta["v"])
        # In front, as further leading dimensions: the numbers of a coordinate.
        per_tensor = zip(
            layout.shapes,
            layout.views(g),
            layout.views(context.x),
            layout.views(m.movedim(-1, 0)),
            layout.views(v),
            state["rows"].movedim(-1, 0).split(self.pieces("rows", layout), -1),
            state["columns"].movedim(-1, 0).split(self.pieces("columns", layout), -1),
            strict=True,
        )
        features, rows, columns = [], [], []
        for tensor in per_tensor:
            seen, row, column = _features(beta["factored"], *tensor)
            features.append(seen)
            rows.append(row)
            columns.append(column)
        update = self._update(layout.join(features).movedim(0, -1), context.step)
        return update, {
            "m": m,
            "v": v,
            "rows": torch.cat(rows, -1).movedim(0, -1),
            "columns": torch.cat(columns, -1).movedim(0, -1),
        }

    def _update(self, features: Tensor, step: Tensor) -> Tensor:
        """Return the update (..., n) for features (..., n, 28)."""
        scales: Any = self.of_scales
        time = step.to(features).unsqueeze(-1) / scales.to(features)
        time = torch.tanh(time - 1).unsqueeze(-2)
        time = time.expand(*features.shape[:-1], len(_SCALES))
        z = self.network["input"](torch.cat([features, time], -1))
        z = self.network["linear_0"](F.relu(z))
        direction, magnitude = self.network["output"](F.relu(z)).unbind(-1)
        return -self.step_mult * direction * torch.exp(0.001 * magnitude)

    def _decay(self, name: str) -> Tensor:
        base: Any = getattr(self, f"of_{name}")
        delta = self.decays[name]
        beta = 1 - (1 - base.to(delta)) * torch.exp(10 * delta)
        return beta.clamp(0, 1)


def _features(
    beta: Tensor,
    shape: tuple[int, ...],
    g: Tensor,
    p: Tensor,
    m: Tensor,
    v: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 28 features (28, ..., *shape) of one tensor; its next factors.

    Args:
        beta: Decays of the factors, shape (3,).
        shape: Of the tensor.
        g: Its gradient, shape (..., *shape).
        p: The tensor, likewise.
        m: Its momenta, shape (3, ..., *shape).
        v: Its second moment, shape (..., *shape).
        rows: Factors flat, shape (3, ..., size).
        columns: Likewise; without entries if the tensor is not factored.
    """
    beta = beta.view(-1, *(1,) * g.dim())
    squares = (g * g + 1e-30).unsqueeze(0)
    r = torch.rsqrt(v + 1e-6)
    if len(shape) < 2:
        z = _moved(rows.view(m.shape), squares, beta)
        by = torch.rsqrt((z + 1e-9).clamp_min(1e-9))
        scaled_g, scaled_m = g * by, m * torch.rsqrt(z + 1e-6)
        row = column = z
        kept = z.reshape(rows.shape), columns
    else:
        d0, d1 = _factored(shape)
        flat = (*m.shape[: m.dim() - len(shape)], -1)
        row = squares.mean(d0, keepdim=True)
        row = _moved(rows.view(3, *row.shape[1:]), row, beta)
        column = squares.mean(d1, keepdim=True)
        column = _moved(columns.view(3, *column.shape[1:]), column, beta)
        share = row / (row.mean(d1, keepdim=True) + 1e-9)
        by = torch.rsqrt(share.clamp_min(1e-9)) * torch.rsqrt(column.clamp_min(1e-9))
        scaled_g, scaled_m = g * by, m * by
        kept = row.reshape(flat), column.reshape(flat)
        row, column = row.expand(m.shape), column.expand(m.shape)
    singles = torch.stack([g, p])
    inverse = torch.rsqrt(row + 1e-8), torch.rsqrt(column + 1e-8)
    features = torch.cat(
        [singles, m, v[None], m * r, r[None], scaled_g, row, column, *inverse, scaled_m]
    )
    if shape:
        over = tuple(range(-len(shape), 0))
        size = features.square().mean(over, keepdim=True)
    else:
        size = features.square()
    return features * torch.rsqrt(1e-5 + size), *kept


def _moved(average: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    return beta * average + (1 - beta) * value


def _factored(shape: Sequence[int]) -> tuple[int, int]:
    """Return the largest and the second largest dimension, counted from the end."""
    order = sorted(range(len(shape)), key=lambda d: shape[d])
    return order[-1] - len(shape), order[-2] - len(shape)


def _factor_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """Return the numbers of entries of rows and columns."""
    if len(shape) < 2:
        return math.prod(shape), 0
    d0, d1 = _factored(shape)
    n = math.prod(shape)
    return n // max(shape[d0], 1), n // max(shape[d1], 1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=inputs**-0.5, a=-2e9, b=2e9)
    nn.init.zeros_(layer.bias)
    return layer
