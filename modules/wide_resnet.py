"""Wide residual networks."""

from torch import Tensor, nn
from torch.nn.functional import relu

from lightning_ecd.checks import at_least
from modules.layers import Mean, drop


class WideBlock(nn.Module):
    """Normalisation and activation before each of two 3x3 convolutions with bias.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the second convolution; if it is not 1, or the channels change, the
            shortcut is a 1x1 convolution of the input.
        dropout: Probability of dropping an entry between the convolutions, in [0, 1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.dropout = nn.Sequential(*drop("dropout", dropout))
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride)."""
        y = self.dropout(self.conv1(relu(self.norm1(x))))
        return self.conv2(relu(self.norm2(y))) + self.shortcut(x)


class WideResNet(nn.Sequential):
    """A residual network that is wide rather than deep.

    With the defaults WRN-28-10 for 100 classes, 36,546,980 parameters: three stages
    of four blocks with 160, 320 and 640 channels.

    Args:
        depth: Number of layers, 6n + 4 for n blocks in a stage.
        width: Factor on the channels 16, 32, 64 of the three stages.
        channels: Colours of the input.
        outputs: Width of the last layer, at least the number of classes.
        dropout: Probability of dropping an entry within a block, in [0, 1).

    Shape:
        (B, channels, H, W) -> (B, outputs)

    Note:
        Departs from the paper as the code used for the experiments of ECDSep does:
        convolutions have biases, the second convolution of a block carries the
        stride, the shortcut sees the block's input, and the last normalisation has
        the momentum 0.9.

    Reference:
        S. Zagoruyko, N. Komodakis, "Wide residual networks", BMVC 2016,
        arXiv 1605.07146.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        channels: int = 3,
        outputs: int = 100,
        dropout: float = 0.0,
    ):
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 10, 16, 22, 28, ..., got {depth}")
        at_least(1, width=width)
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1)]
        inputs = 16
        for stage in range(3):
            for index in range((depth - 4) // 6):
                stride = 2 if stage and index == 0 else 1
                layers.append(WideBlock(inputs, 16 * width << stage, stride, dropout))
                inputs = 16 * width << stage
        norm = nn.BatchNorm2d(inputs, momentum=0.9)
        super().__init__(*layers, norm, nn.ReLU(), Mean(), nn.Linear(inputs, outputs))
