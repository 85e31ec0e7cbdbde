"""Small convolutional networks: sizes, initialisation, refusals."""

import pytest
import torch
from torch import nn

from modules import CNN, FC, ConvNet, LeNet


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        (FC, (1, 28, 28), 101_770),
        (lambda: FC(3072), (3, 32, 32), 394_634),
        (CNN, (1, 28, 28), 93_322),
        (lambda: CNN(3, 32), (3, 32, 32), 122_570),
        (ConvNet, (1, 28, 28), 3_274_634),
    ],
)
def test_sizes_are_the_published_ones(build, shape, expected):
    network = build()
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network(torch.rand(2, *shape)).shape == (2, 10)


def test_kernels_are_uniform_as_glorot_says_and_biases_zero():
    """Within sqrt(6 / (fan in + fan out)): of 784-128 and, by 3x3 windows, of 32-64."""
    torch.manual_seed(0)
    dense, convolution = FC()[1], CNN()[3]
    assert isinstance(convolution, nn.Conv2d)
    bounds = {
        dense: (6 / (784 + 128)) ** 0.5,
        convolution: (6 / (9 * 32 + 9 * 64)) ** 0.5,
    }
    for layer, bound in bounds.items():
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not layer.bias.any()


@pytest.mark.parametrize(("build", "size"), [(CNN, 17), (ConvNet, 3)])
def test_images_that_are_too_small_are_refused(build, size):
    with pytest.raises(ValueError, match="^size must be at least"):
        build(size=size)


def test_a_dropped_share_of_everything_is_refused():
    dropped = [layer.p for layer in LeNet(dropout=0.3) if hasattr(layer, "p")]
    assert dropped == [0.3]
    with pytest.raises(ValueError, match=r"^dropout must lie in \[0, 1\), got 1.0"):
        LeNet(dropout=1.0)
