"""Fully connected networks: layers in a chain, and layers added to what came before."""

from torch import Tensor, nn

from lightning_ecd.checks import at_least
from lightning_ecd.laplacian import Jet, chain, register
from modules.layers import activation_named, drop


class MLP(nn.Sequential):
    """Linear layers with an activation between them, torch's initialisation.

    Args:
        inputs: Width of the input, at least 1.
        widths: Width of every hidden layer; empty: one linear layer.
        outputs: Width of the output, at least 1.
        activation: After every hidden layer: gelu, identity, relu, sigmoid, silu, sin,
            softplus or tanh.
        dropout: Probability of dropping a hidden unit, in [0, 1).

    Shape:
        (B, inputs) -> (B, outputs)
    """

    def __init__(
        self,
        inputs: int,
        widths: list[int],
        outputs: int = 1,
        activation: str = "tanh",
        dropout: float = 0.0,
    ):
        at_least(1, inputs=inputs, widths=min(widths, default=1), outputs=outputs)
        chosen = activation_named(activation)
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(inputs, width), chosen(), *drop("dropout", dropout)]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, outputs))


class Residual(nn.Sequential):
    """A chain whose result is added to its input."""

    def forward(self, h: Tensor) -> Tensor:
        """Return h + chain(h)."""
        return h + super().forward(h)


def _residual(block: Residual, jet: Jet, wanted: bool) -> Jet:
    value, slopes, bend = chain(block, jet, wanted)
    return Jet(
        jet.value + value,
        _plus(jet.slopes, slopes) if wanted else None,
        _plus(jet.bend, bend),
    )


def _plus(before: Tensor | None, body: Tensor | None) -> Tensor | None:
    if before is None or body is None:
        return before if body is None else body
    return before + body


register(Residual, _residual)


class ResidualMLP(nn.Sequential):
    r"""A hidden layer, `depth` residual layers of the same width, a linear output.

    .. math::
        h \leftarrow \sigma(W_0 x + b_0), \quad
        h \leftarrow h + \sigma(W_k h + b_k), \quad
        u = W h + b

    Weights are drawn after all layers were built, layer by layer, from Xavier's
    normal distribution of gain 1; biases are torch's. With 2 inputs, width 200 and
    depth 3: 121,401 parameters.

    Args:
        inputs: Width of the input, at least 1.
        width: Of the hidden layers, at least 1.
        depth: Number of residual layers, at least 0.
        outputs: Width of the output, at least 1.
        activation: As for `MLP`.

    Shape:
        (B, inputs) -> (B, outputs)
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        depth: int,
        outputs: int = 1,
        activation: str = "sigmoid",
    ):
        at_least(1, inputs=inputs, width=width, outputs=outputs)
        at_least(0, depth=depth)
        chosen = activation_named(activation)
        first = nn.Linear(inputs, width)
        blocks = [Residual(nn.Linear(width, width), chosen()) for _ in range(depth)]
        super().__init__(first, chosen(), *blocks, nn.Linear(width, outputs))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
