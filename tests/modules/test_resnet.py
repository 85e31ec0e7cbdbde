import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, linear, relu

from modules import PreActResNet, ResNet, ResNet8, WideResNet


@pytest.mark.parametrize(
    ("build", "parameters", "tensors"),
    [
        (ResNet, 11_173_962, 62),
        (PreActResNet, 11_171_146, 54),
        (lambda: ResNet(outputs=200), 11_271_432, 62),
        (WideResNet, 36_546_980, 108),
        (ResNet8, 77_850, 25),
        (lambda: ResNet8([5, 5, 5]), 466_714, 97),
    ],
    ids=["ResNet-18", "PreAct ResNet-18", "ResNet-18, 200 classes", "WRN-28-10"]
    + ["ResNet-8", "ResNet-32"],
)
def test_networks_are_as_large_as_the_published_ones(build, parameters, tensors):
    with torch.device("meta"):
        sizes = [p.numel() for p in build().parameters()]
    assert (sum(sizes), len(sizes)) == (parameters, tensors)


def normal(x, weights):
    """Normalise over batch and pixels, scale and shift by the next two tensors."""
    scale, shift = next(weights), next(weights)
    return batch_norm(x, None, None, scale, shift, training=True)


def block(x, weights, stride, shortcut):
    y = conv2d(x, next(weights), stride=stride, padding=1)
    y = relu(normal(y, weights))
    y = normal(conv2d(y, next(weights), padding=1), weights)
    if shortcut:
        x = normal(conv2d(x, next(weights), stride=stride), weights)
    return relu(x + y)


def resnet(x, weights):
    x = relu(normal(conv2d(x, next(weights), padding=1), weights))
    x = block(x, weights, 1, False)
    x = block(x, weights, 2, True)
    x = block(x, weights, 1, False)
    return linear(x.mean((2, 3)), next(weights), next(weights))


def preact_block(x, weights, stride, shortcut):
    active = relu(normal(x, weights))
    y = conv2d(active, next(weights), stride=stride, padding=1)
    y = conv2d(relu(normal(y, weights)), next(weights), padding=1)
    return y + (conv2d(active, next(weights), stride=stride) if shortcut else x)


def preact_resnet(x, weights):
    x = conv2d(x, next(weights), padding=1)
    x = preact_block(x, weights, 1, False)
    x = preact_block(x, weights, 2, True)
    x = preact_block(x, weights, 1, False)
    return linear(x.mean((2, 3)), next(weights), next(weights))


def wide_block(x, weights, stride, shortcut):
    y = relu(normal(x, weights))
    y = relu(normal(conv2d(y, next(weights), next(weights), padding=1), weights))
    y = conv2d(y, next(weights), next(weights), stride=stride, padding=1)
    if shortcut:
        x = conv2d(x, next(weights), next(weights), stride=stride)
    return x + y


def wide_resnet(x, weights):
    x = conv2d(x, next(weights), next(weights), padding=1)
    for stride, shortcut in ((1, True), (2, True), (2, True)):
        x = wide_block(x, weights, stride, shortcut)
    x = relu(normal(x, weights))
    return linear(x.mean((2, 3)), next(weights), next(weights))


@pytest.mark.parametrize(
    ("build", "written_out"),
    [
        (lambda: ResNet([1, 2], 4, outputs=5), resnet),
        (lambda: PreActResNet([1, 2], 4, outputs=5), preact_resnet),
        (lambda: WideResNet(10, 2, outputs=5), wide_resnet),
    ],
    ids=["ResNet", "PreActResNet", "WideResNet"],
)
def test_networks_compute_what_their_papers_say(build, written_out):
    torch.manual_seed(0)
    network = build().double()
    for p in network.parameters():  # ones and zeros would hide an error
        nn.init.normal_(p, 0.5, 0.5)
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    weights = iter(network.parameters())
    torch.testing.assert_close(network(images), written_out(images, weights))
    assert next(weights, None) is None


def test_a_bare_shortcut_is_a_convolution_alone():
    torch.manual_seed(0)
    network = ResNet8([1, 1], 4).double()
    before = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(before) == 5  # the stem's and two of each block
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    weights = iter(network.parameters())
    x = relu(normal(conv2d(images, next(weights), padding=1), weights))
    x = block(x, weights, 1, False)
    y = relu(normal(conv2d(x, next(weights), stride=2, padding=1), weights))
    y = normal(conv2d(y, next(weights), padding=1), weights)
    x = relu(y + conv2d(x, next(weights), stride=2))
    expected = linear(x.mean((2, 3)), next(weights), next(weights))
    torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("build", [ResNet, PreActResNet])
def test_each_stage_halves_the_resolution_and_doubles_the_channels(build):
    network = build([1, 1, 1, 1], width=2).eval()
    shapes = []
    for block in network.children():
        block.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape[1:])))
    network(torch.zeros(1, 3, 32, 32))
    assert shapes[-6:-2] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert shapes[-2:] == [(16,), (10,)]


def test_depth_and_width_follow_the_arguments():
    depth = 6 * 3 + 2
    network = ResNet([3, 3, 3], width=16)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shortcuts = [m for m in layers if getattr(m, "kernel_size", None) == (1, 1)]
    assert len(layers) - len(shortcuts) == depth
    assert network[-1].in_features == 64


def test_kaiming_initialization_has_the_variance_of_the_fan_out():
    torch.manual_seed(0)
    network = ResNet([1, 1], width=32, init="kaiming")
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            variance = 2 / (module.out_channels * 9)
            assert module.weight.var().item() == pytest.approx(variance, rel=0.1)


def test_glorot_initialization_has_the_variance_of_both_fans():
    torch.manual_seed(0)
    network = ResNet8([1, 1], width=32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            fans = 9 * (module.in_channels + module.out_channels)
            assert module.weight.var().item() == pytest.approx(2 / fans, rel=0.1)
            assert module.weight.abs().max() <= (6 / fans) ** 0.5
    assert (network[-1].bias == 0).all()


def test_the_last_normalisation_of_a_wide_network_forgets_quickly():
    norms = [m for m in WideResNet(10, 1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.1] * 6 + [0.9]


def test_dropout_sits_between_the_convolutions():
    torch.manual_seed(0)
    network = WideResNet(10, 1, dropout=0.5)
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))
    assert sum(isinstance(m, nn.Dropout) for m in network.modules()) == 3


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: ResNet([]), "blocks"),
        (lambda: ResNet([2, 0]), "blocks"),
        (lambda: ResNet(init="orthogonal"), "init"),
        (lambda: WideResNet(depth=27), "depth"),
        (lambda: WideResNet(width=0), "width"),
        (lambda: WideResNet(dropout=1.0), "dropout"),
    ],
)
def test_bad_arguments_are_refused_by_name(build, name):
    with pytest.raises(ValueError, match=name):
        build()
