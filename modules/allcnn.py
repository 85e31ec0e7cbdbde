"""The network of convolutions alone that Entropy-SGD trains on CIFAR-10."""

from torch import nn

from lightning_ecd.checks import at_least
from modules.layers import Mean, drop


class AllCNN(nn.Sequential):
    """Nine convolutions with BatchNorm and nothing else: "All-CNN-BN".

    Two of stride 2 stand where others pool. With the defaults 1,667,166 parameters.

    Args:
        width: Channels of the first three convolutions; the next five have twice as
            many.
        dropout: Probability of dropping an entry after each stride, in [0, 1).
        input_dropout: Probability of dropping an input, in [0, 1).
        channels: Colours of the input.
        outputs: Channels of the last convolution, at least the number of classes.

    Shape:
        (B, channels, H, W) -> (B, outputs)

    Note:
        The network of the released programs, which departs from All-CNN-C: layer 8
        is 3x3 instead of 1x1, and the last convolution has BatchNorm and ReLU too, so
        that logits are means of numbers that are not negative.

    Reference:
        J. T. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for
        simplicity: the all convolutional net", ICLR 2015 workshop, arXiv 1412.6806;
        P. Chaudhari et al., "Entropy-SGD: biasing gradient descent into wide
        valleys", ICLR 2017, arXiv 1611.01838.
    """

    def __init__(
        self,
        width: int = 96,
        dropout: float = 0.5,
        input_dropout: float = 0.2,
        channels: int = 3,
        outputs: int = 10,
    ):
        at_least(1, width=width)
        wide = 2 * width
        super().__init__(
            *drop("input_dropout", input_dropout),
            *_layer(channels, width),
            *_layer(width, width),
            *_layer(width, width, stride=2),
            *drop("dropout", dropout),
            *_layer(width, wide),
            *_layer(wide, wide),
            *_layer(wide, wide, stride=2),
            *drop("dropout", dropout),
            *_layer(wide, wide),
            *_layer(wide, wide),
            *_layer(wide, outputs, kernel=1),
            Mean(),
        )


def _layer(
    inputs: int, outputs: int, stride: int = 1, kernel: int = 3
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]
