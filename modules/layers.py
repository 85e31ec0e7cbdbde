"""Layers, activations and initialisations that several networks share."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lightning_ecd.checks import one_of
from lightning_ecd.laplacian import register_activation


class Mean(nn.Module):
    """The mean over all pixels, (B, C, H, W) -> (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        return x.mean((2, 3))


def drop(name: str, probability: float) -> list[nn.Module]:
    """Return a layer that drops entries, none for the probability 0.

    Args:
        name: Of the argument, for the refusal.
        probability: Of dropping an entry, in [0, 1).
    """
    if not 0 <= probability < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {probability}")
    return [nn.Dropout(probability)] if probability else []


class Sin(nn.Module):
    """The sine of every entry, for solutions that oscillate."""

    def forward(self, z: Tensor) -> Tensor:
        """Return sin z."""
        return torch.sin(z)


def _sine_slopes(z: Tensor, a: Tensor) -> Iterator[Tensor]:
    cos = torch.cos(z)
    yield cos
    yield -a
    yield -cos


register_activation(Sin, _sine_slopes)


#: Activations by name.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "sin": Sin,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activation_named(name: str) -> type[nn.Module]:
    """Return the activation of a name, the argument `activation` of a network."""
    one_of(ACTIVATIONS, activation=name)
    return ACTIVATIONS[name]


def initialize_glorot(layers: Iterable[nn.Module]) -> None:
    """Draw kernels uniformly as Glorot does, set biases to zero."""
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
