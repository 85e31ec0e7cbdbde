"""Residual networks for small images, with batch normalisation after or before."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.functional import relu

from lightning_ecd.checks import one_of
from modules.layers import Mean, initialize_glorot

Initialization = Literal["default", "kaiming", "glorot"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by normalisation, and a shortcut.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution; if it is not 1, or the channels change, the
            shortcut is a 1x1 convolution with normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = self.projection(inputs, outputs, stride)

    @staticmethod
    def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
        """Return the shortcut between different shapes."""
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride)."""
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(y + self.shortcut(x))


class BareShortcutBlock(BasicBlock):
    """A `BasicBlock` whose shortcut is never normalised.

    Args:
        inputs: See `BasicBlock`.
        outputs: See `BasicBlock`.
        stride: See `BasicBlock`.
    """

    @staticmethod
    def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
        """Return the shortcut between different shapes."""
        return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PreActBlock(nn.Module):
    """Normalisation and activation before each of two 3x3 convolutions.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution; if it is not 1, or the channels change, the
            shortcut is a 1x1 convolution of the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H / stride, W / stride)."""
        active = relu(self.norm1(x))
        past = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(relu(self.norm2(self.conv1(active)))) + past


class ResNet(nn.Sequential):
    """A residual network whose first convolution keeps the resolution.

    With the defaults ResNet-18 for 32x32 images, 11,173,962 parameters in 62
    tensors. The first stage has `width` channels and each further one twice as many
    at half the resolution; the mean over all pixels goes to a linear layer.
    ``blocks=[n, n, n], width=16`` are the networks of depth 6n + 2 for CIFAR.

    Args:
        blocks: Blocks in every stage.
        width: Channels of the first stage.
        channels: Colours of the input.
        outputs: Width of the last layer, at least the number of classes.
        init: torch's "default"; "kaiming": convolutions normal, with the variance 2 /
            fan-out; "glorot": all weights uniform, with the variance 2 / (fan-in +
            fan-out), biases zero.

    Shape:
        (B, channels, H, W) -> (B, outputs)

    Reference:
        K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image
        recognition", CVPR 2016, arXiv 1512.03385.
    """

    block: type[nn.Module] = BasicBlock
    #: Whether the first convolution is followed by normalisation and activation.
    normalized_stem = True

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        channels: int = 3,
        outputs: int = 10,
        init: Initialization = "default",
    ):
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks must be positive numbers, got {list(blocks)}")
        one_of(get_args(Initialization), init=init)
        layers: list[nn.Module] = [conv3x3(channels, width)]
        if self.normalized_stem:
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        inputs = width
        for stage, number in enumerate(blocks):
            for index in range(number):
                stride = 2 if stage and index == 0 else 1
                layers.append(self.block(inputs, width << stage, stride))
                inputs = width << stage
        super().__init__(*layers, Mean(), nn.Linear(inputs, outputs))
        if init == "kaiming":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(
                        module.weight, mode="fan_out", nonlinearity="relu"
                    )
        if init == "glorot":
            initialize_glorot(self.modules())


class ResNet8(ResNet):
    """A residual network for CIFAR whose shortcuts are not normalised.

    With the defaults 77,850 parameters; ``blocks=[5, 5, 5]``, ResNet-32, has 466,714.

    Args:
        blocks: See `ResNet`.
        width: See `ResNet`.
        channels: See `ResNet`.
        outputs: See `ResNet`.
        init: See `ResNet`.

    Shape:
        (B, channels, H, W) -> (B, outputs)

    Reference:
        F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural network training in
        low dimensional random bases", NeurIPS 2020, arXiv 2011.04720, whose 78,330
        parameters count the 480 running means and variances, too.
    """

    block = BareShortcutBlock

    def __init__(
        self,
        blocks: Sequence[int] = (1, 1, 1),
        width: int = 16,
        channels: int = 3,
        outputs: int = 10,
        init: Initialization = "glorot",
    ):
        super().__init__(blocks, width, channels, outputs, init)


class PreActResNet(ResNet):
    """A residual network with normalisation and activation before convolutions.

    With the defaults PreAct ResNet-18, 11,171,146 parameters in 54 tensors. Neither
    the first convolution nor the last block is followed by normalisation, as in the
    code used for the experiments of BBI.

    Args:
        blocks: See `ResNet`.
        width: See `ResNet`.
        channels: See `ResNet`.
        outputs: See `ResNet`.
        init: See `ResNet`.

    Shape:
        (B, channels, H, W) -> (B, outputs)

    Reference:
        K. He, X. Zhang, S. Ren, J. Sun, "Identity mappings in deep residual
        networks", ECCV 2016, arXiv 1603.05027.
    """

    block = PreActBlock
    normalized_stem = False


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution without bias that keeps the resolution at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
