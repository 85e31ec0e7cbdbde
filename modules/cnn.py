"""The networks of descent in random bases: Glorot's initialisation, zero biases."""

from torch import nn

from lightning_ecd.checks import at_least
from modules.layers import initialize_glorot


class FC(nn.Sequential):
    """One hidden layer of ReLUs: 101,770 parameters with the defaults.

    Args:
        inputs: Pixels of an image times its colours; 3072 gives 394,634 parameters.
        width: Of the hidden layer.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, ...) with `inputs` values in an image -> (B, outputs)

    Reference:
        F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network training in
        low dimensional random bases", NeurIPS 2020, arXiv 2011.04720.
    """

    def __init__(self, inputs: int = 784, width: int = 128, outputs: int = 10):
        super().__init__(
            nn.Flatten(),
            nn.Linear(inputs, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )
        initialize_glorot(self.modules())


class CNN(nn.Sequential):
    """Three convolutions and a hidden layer of 64: 93,322 parameters by default.

    Args:
        channels: Colours of the input.
        size: Height and width of the images; 32 with 3 channels gives 122,570
            parameters.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, channels, size, size) -> (B, outputs)

    Reference:
        As for `FC`.
    """

    def __init__(self, channels: int = 1, size: int = 28, outputs: int = 10):
        side = ((size - 2) // 2 - 2) // 2 - 2
        if side < 1:
            raise ValueError(f"size must be at least 18, got {size}")
        super().__init__(
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * side**2, 64), nn.ReLU(), nn.Linear(64, outputs)),
        )
        initialize_glorot(self.modules())


class ConvNet(nn.Sequential):
    """Two 5x5 convolutions and a hidden layer of 1024: 3,274,634 parameters.

    Args:
        channels: Colours of the input.
        size: Height and width of the images, at least 4.
        outputs: Width of the last layer, at least the number of classes.

    Shape:
        (B, channels, size, size) -> (B, outputs)

    Reference:
        As for `FC`; an unused preset of the released code.
    """

    def __init__(self, channels: int = 1, size: int = 28, outputs: int = 10):
        at_least(4, size=size)
        super().__init__(
            *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, 1024), nn.ReLU()),
            nn.Linear(1024, outputs),
        )
        initialize_glorot(self.modules())
