"""The networks of Entropy-SGD for handwritten digits, with dropout and BatchNorm."""

from typing import Literal, get_args

from torch import nn

from lightning_ecd.checks import one_of
from modules.layers import drop

#: Where normalisation stands: before the activation, or after it and the pooling.
LayerOrder = Literal["pytorch", "lua"]


class MnistFC(nn.Sequential):
    """Two hidden layers of 1024 with BatchNorm and dropout: "mnistfc".

    Of the two programs that the authors released, the one for PyTorch has
    [Linear, BatchNorm, ReLU, Dropout] and drops inputs too; the one for Lua has
    [Linear, ReLU, BatchNorm, Dropout]. With the defaults 1,867,786 parameters in
    either order, 1,863,690 without BatchNorm.

    Args:
        order: Of the layers, as in the program for "pytorch" or "lua".
        dropout: Probability of dropping a hidden unit, in [0, 1); 0.5 in both
            programs, 0.15 in the paper.
        input_dropout: Probability of dropping an input, in [0, 1); None: 0.2 in the
            order "pytorch", 0 in the order "lua".
        batchnorm: Normalise; the published errors were measured without.
        inputs: Pixels of an image times its colours.
        width: Of the hidden layers.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, ...) with `inputs` values in an image -> (B, outputs)

    Reference:
        P. Chaudhari, A. Choromanska, S. Soatto, Y. LeCun, C. Baldassi, C. Borgs,
        J. Chayes, L. Sagun, R. Zecchina, "Entropy-SGD: biasing gradient descent into
        wide valleys", ICLR 2017, arXiv 1611.01838.
    """

    def __init__(
        self,
        order: LayerOrder = "pytorch",
        dropout: float = 0.5,
        input_dropout: float | None = None,
        batchnorm: bool = True,
        inputs: int = 784,
        width: int = 1024,
        outputs: int = 10,
    ):
        first = _order(order)
        if input_dropout is None:
            input_dropout = 0.2 if first else 0.0
        layers: list[nn.Module] = [nn.Flatten(), *drop("input_dropout", input_dropout)]
        for before in (inputs, width):
            norm: list[nn.Module] = [nn.BatchNorm1d(width)] if batchnorm else []
            active: list[nn.Module] = [nn.ReLU()]
            layers.append(nn.Linear(before, width))
            layers += norm + active if first else active + norm
            layers += drop("dropout", dropout)
        super().__init__(*layers, nn.Linear(width, outputs))


class MnistConv(nn.Sequential):
    """Two 5x5 convolutions and a hidden layer of 500: "mnistconv", the paper's LeNet.

    Of the two programs that the authors released, the one for PyTorch has
    [convolution, BatchNorm, ReLU, pooling, Dropout] and normalises the hidden layer
    too, 132,220 parameters; the one for Lua, which gave the published errors, has
    [convolution, ReLU, pooling, BatchNorm, Dropout] and a hidden layer without
    BatchNorm, 131,220 parameters.

    Args:
        order: Of the layers, as in the program for "pytorch" or "lua".
        dropout: Probability of dropping a unit, in [0, 1); 0.5 in both programs,
            0.25 in the paper.
        channels: Colours of the input.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, channels, 28, 28) -> (B, outputs)

    Reference:
        P. Chaudhari, A. Choromanska, S. Soatto, Y. LeCun, C. Baldassi, C. Borgs,
        J. Chayes, L. Sagun, R. Zecchina, "Entropy-SGD: biasing gradient descent into
        wide valleys", ICLR 2017, arXiv 1611.01838.
    """

    def __init__(
        self,
        order: LayerOrder = "pytorch",
        dropout: float = 0.5,
        channels: int = 1,
        outputs: int = 10,
    ):
        first = _order(order)
        layers: list[nn.Module] = []
        for before, after, pool in ((channels, 20, 3), (20, 50, 2)):
            norm: list[nn.Module] = [nn.BatchNorm2d(after)]
            active: list[nn.Module] = [nn.ReLU(), nn.MaxPool2d(pool)]
            layers.append(nn.Conv2d(before, after, 5))
            layers += norm + active if first else active + norm
            layers += drop("dropout", dropout)
        hidden: list[nn.Module] = [nn.Flatten(), nn.Linear(200, 500)]
        hidden += [nn.BatchNorm1d(500), nn.ReLU()] if first else [nn.ReLU()]
        hidden += drop("dropout", dropout)
        super().__init__(*layers, *hidden, nn.Linear(500, outputs))


def _order(order: LayerOrder) -> bool:
    """Return whether normalisation comes first."""
    one_of(get_args(LayerOrder), order=order)
    return order == "pytorch"
