"""Small convolutional networks for digits."""

from torch import Tensor, nn

from modules.layers import drop


class LeNet(nn.Sequential):
    """Two 5x5 convolutions with pooling and one linear layer.

    With the defaults on 28x28 images: 28,938 parameters. The reference code of BBI
    ends in 120 outputs for 10 classes (``outputs=120``: 201,528 parameters, initial
    loss ln 120); its published numbers are for that head.

    Args:
        channels: Colours of the input.
        size: Height and width of the input in pixels, a multiple of 4.
        outputs: Width of the last layer, at least the number of classes.
        dropout: Probability of dropping an input of the last layer, in [0, 1).

    Shape:
        (B, channels, size, size) -> (B, outputs)
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        outputs: int = 10,
        dropout: float = 0.0,
    ):
        if size % 4:
            raise ValueError(f"size must be a multiple of 4, got {size}")
        super().__init__(
            nn.Conv2d(channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *drop("dropout", dropout),
            nn.Linear(32 * (size // 4) ** 2, outputs),
        )


class LeNet5(nn.Module):
    """The classical LeNet-5, with ReLU and max pooling; 61,706 parameters.

    Args:
        outputs: Width of the last layer, in [0, 1).

    Shape:
        (B, 1, 28, 28) -> (B, outputs)

    Reference:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied
        to document recognition", Proc. IEEE 1998.
    """

    def __init__(self, outputs: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, outputs),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(images))
