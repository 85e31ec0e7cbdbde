"""Layers in the neural tangent parametrisation: unit variance, scaled on the way."""

from torch import Tensor, nn
from torch.nn import functional

from lightning_ecd.checks import above, at_least
from modules.layers import activation_named


class NTKLinear(nn.Linear):
    r"""A linear layer :math:`W x/\sqrt{d} + b` whose entries are drawn from N(0, σ²).

    Args:
        inputs: d.
        outputs: Rows of W.
        bias: Whether there is a b.
        sigma_w: Standard deviation of the draw of W, > 0.
        sigma_b: Of b, >= 0.

    Shape:
        (..., inputs) -> (..., outputs)

    Reference:
        A. Jacot, F. Gabriel, C. Hongler, "Neural tangent kernel", NeurIPS 2018, arXiv
        1806.07572.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        sigma_w: float = 1.0,
        sigma_b: float = 1.0,
    ):
        self.sigmas = sigma_w, sigma_b
        super().__init__(inputs, outputs, bias)

    @property
    def weight_scale(self) -> float:
        """What the weight is multiplied by."""
        return self.in_features**-0.5

    def reset_parameters(self) -> None:
        """Draw weights and biases."""
        _draw(self, *self.sigmas)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return functional.linear(x * self.weight_scale, self.weight, self.bias)


class NTKConv2d(nn.Conv2d):
    r"""A convolution whose weight is divided by :math:`\sqrt{c\,k_h k_w}`.

    Args:
        inputs: Channels c.
        outputs: Channels.
        kernel_size: Of the filters.
        bias: Whether there is one, not scaled.
        sigma_w: Standard deviation of the draw of the weight, > 0.
        sigma_b: Of the bias, >= 0.
        kwargs: As for torch.nn.Conv2d.

    Shape:
        (B, inputs, H, W) -> (B, outputs, H', W')
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        bias: bool = True,
        sigma_w: float = 1.0,
        sigma_b: float = 1.0,
        **kwargs: object,
    ):
        self.sigmas = sigma_w, sigma_b
        super().__init__(inputs, outputs, kernel_size, bias=bias, **kwargs)  # type: ignore[arg-type]

    @property
    def weight_scale(self) -> float:
        """What the weight is multiplied by."""
        return self.weight[0].numel() ** -0.5

    def reset_parameters(self) -> None:
        """Draw weights and biases."""
        _draw(self, *self.sigmas)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self._conv_forward(x * self.weight_scale, self.weight, self.bias)


def _draw(layer: nn.Linear | nn.Conv2d, sigma_w: float, sigma_b: float) -> None:
    above(0, sigma_w=sigma_w)
    at_least(0, sigma_b=sigma_b)
    nn.init.normal_(layer.weight, std=sigma_w)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=sigma_b)


class ShallowNet(nn.Module):
    r"""One hidden layer in the neural tangent parametrisation.

    .. math:: f(x) = W_2\, \sigma(W_1 x/\sqrt{d} + b_1)/\sqrt{h}

    Args:
        inputs: d, the numbers in an input of any shape.
        width: h.
        outputs: Rows of W_2.
        activation: σ, as for `MLP`.
        sigma_w: Standard deviation of the draws of W_1 and W_2.
        sigma_b: Of b_1.

    Shape:
        (B, ...) -> (B, outputs)
    """

    def __init__(
        self,
        inputs: int,
        width: int = 1000,
        outputs: int = 1,
        activation: str = "relu",
        sigma_w: float = 1.0,
        sigma_b: float = 1.0,
    ):
        super().__init__()
        at_least(1, inputs=inputs, width=width, outputs=outputs)
        self.activation = activation_named(activation)()
        self.first = NTKLinear(inputs, width, True, sigma_w, sigma_b)
        self.last = NTKLinear(width, outputs, False, sigma_w)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.last(self.activation(self.first(x.flatten(1))))


class TorchvisionNet(nn.Module):
    """A network of torchvision, for images of any number of channels.

    Images of one channel are shown three times over; others must have three.

    Args:
        name: As torchvision lists it: resnet18, efficientnet_b0, mobilenet_v2, ...
        outputs: Of the last layer.

    Shape:
        (B, channels, H, W) -> (B, outputs)
    """

    def __init__(self, name: str, outputs: int = 1):
        super().__init__()
        from torchvision import models

        if name not in models.list_models(module=models):
            raise ValueError(f"name must be one of torchvision's models, got {name!r}")
        self.network = models.get_model(name, num_classes=outputs)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return self.network(x)
