import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.nn.functional import (
    avg_pool2d,
    batch_norm,
    conv2d,
    cross_entropy,
    linear,
    max_pool2d,
    relu,
)

from modules import AllCNN, MnistConv, MnistFC, SmallLeNet, SmallMnistFC
from modules.small import FoldedPool


def parameters(build):
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (MnistFC, 1_867_786),
        (lambda: MnistFC("lua"), 1_867_786),
        (lambda: MnistFC(batchnorm=False), 1_863_690),
        (MnistConv, 132_220),
        (lambda: MnistConv("lua"), 131_220),
        (AllCNN, 1_667_166),
        (SmallLeNet, 47_658),
        (lambda: SmallLeNet("neighbours"), 47_658),
        (SmallMnistFC, 50_890),
        (lambda: SmallMnistFC(196, 32), 6_634),
    ],
)
def test_networks_are_as_large_as_the_released_ones(build, expected):
    assert parameters(build) == expected


def normal(x, weights):
    return batch_norm(x, None, None, next(weights), next(weights), training=True)


def fc(x, weights, first):
    x = x.flatten(1)
    for _ in range(2):
        x = linear(x, next(weights), next(weights))
        x = relu(normal(x, weights)) if first else normal(relu(x), weights)
    return linear(x, next(weights), next(weights))


def conv(x, weights, first):
    for size in (3, 2):
        x = conv2d(x, next(weights), next(weights))
        if first:
            x = max_pool2d(relu(normal(x, weights)), size)
        else:
            x = normal(max_pool2d(relu(x), size), weights)
    x = linear(x.flatten(1), next(weights), next(weights))
    x = relu(normal(x, weights) if first else x)
    return linear(x, next(weights), next(weights))


def allcnn(x, weights):
    for stride in (1, 1, 2, 1, 1, 2, 1, 1):
        x = conv2d(x, next(weights), next(weights), stride, padding=1)
        x = relu(normal(x, weights))
    x = relu(normal(conv2d(x, next(weights), next(weights)), weights))
    return avg_pool2d(x, 8).flatten(1)


@pytest.mark.parametrize(
    ("build", "shape", "written_out"),
    [
        (
            lambda: MnistFC(dropout=0, input_dropout=0, width=9),
            (1, 28, 28),
            lambda x, weights: fc(x, weights, True),
        ),
        (
            lambda: MnistFC("lua", dropout=0, width=9),
            (1, 28, 28),
            lambda x, weights: fc(x, weights, False),
        ),
        (
            lambda: MnistConv(dropout=0),
            (1, 28, 28),
            lambda x, weights: conv(x, weights, True),
        ),
        (
            lambda: MnistConv("lua", dropout=0),
            (1, 28, 28),
            lambda x, weights: conv(x, weights, False),
        ),
        (lambda: AllCNN(4, dropout=0, input_dropout=0), (3, 32, 32), allcnn),
    ],
    ids=["mnistfc", "mnistfc lua", "mnistconv", "mnistconv lua", "allcnn"],
)
def test_networks_compute_what_the_released_ones_do(build, shape, written_out):
    torch.manual_seed(0)
    network = build().double()
    for p in network.parameters():  # ones and zeros would hide an error
        nn.init.normal_(p, 0.2, 0.3)
    images = torch.randn(6, *shape, dtype=torch.float64)
    weights = iter(network.parameters())
    torch.testing.assert_close(network(images), written_out(images, weights))
    assert next(weights, None) is None


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (MnistFC(width=4), [0.2, 0.5, 0.5]),
        (MnistFC("lua", width=4), [0.5, 0.5]),
        (MnistFC(dropout=0.15, width=4), [0.2, 0.15, 0.15]),
        (MnistConv(), [0.5, 0.5, 0.5]),
        (MnistConv("lua", dropout=0.25), [0.25, 0.25, 0.25]),
        (AllCNN(4), [0.2, 0.5, 0.5]),
        (AllCNN(4, dropout=0, input_dropout=0), []),
    ],
)
def test_dropout_is_the_released_one_unless_given(network, expected):
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == expected


def names(network):
    return [type(m).__name__ for m in network]


def test_dropout_follows_each_group_of_layers():
    assert names(MnistConv("lua"))[:6] == [
        *("Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d", "Dropout", "Conv2d")
    ]
    assert names(MnistFC("lua"))[:6] == [
        *("Flatten", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear")
    ]
    strided = [i for i, m in enumerate(AllCNN(4)) if getattr(m, "stride", 1) == (2, 2)]
    assert [names(AllCNN(4))[i + 3] for i in strided] == ["Dropout", "Dropout"]


def test_folded_pooling_takes_the_maxima_of_entries_half_an_image_apart():
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    pooled = FoldedPool()(x)
    assert pooled.shape == (2, 3, 4, 3)
    for r in range(4):
        for c in range(3):
            four = [x[..., i, j] for i in (r, r + 4) for j in (c, c + 3)]
            assert torch.equal(pooled[..., r, c], torch.stack(four).max(0)[0])
    assert not torch.equal(pooled, max_pool2d(x, 2))


@pytest.mark.parametrize("pool", ["folded", "neighbours"])
def test_the_small_lenet_pools_as_it_is_told(pool):
    torch.manual_seed(2)
    network = SmallLeNet(pool).double()
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    weights, y = list(network.parameters()), x
    for i in (0, 2):
        y = relu(conv2d(y, weights[i], weights[i + 1]))
        half = y.shape[-1] // 2
        if pool == "folded":
            y = torch.maximum(y[..., :half, :], y[..., half:, :])
            y = torch.maximum(y[..., :half], y[..., half:])
        else:
            y = torch.maximum(y[..., ::2, :], y[..., 1::2, :])
            y = torch.maximum(y[..., ::2], y[..., 1::2])
    y = relu(linear(y.flatten(1), *weights[4:6]))
    torch.testing.assert_close(network(x), linear(y, *weights[6:]))


def test_small_networks_start_from_the_published_law():
    torch.manual_seed(3)
    values = nn.utils.parameters_to_vector(SmallLeNet().parameters())
    assert values.mean().abs() < 3 * 0.1 / len(values) ** 0.5
    assert values.std().item() == pytest.approx(0.1, rel=0.01)
    assert all((p != 0).all() for p in SmallLeNet().parameters())


def test_folded_pooling_can_be_differentiated_twice():
    torch.manual_seed(4)
    network = nn.Sequential(nn.Tanh(), FoldedPool(), nn.Flatten(), nn.Tanh())
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)

    def loss(x):
        return cross_entropy(network(x), torch.tensor([1]))

    curvature = hessian(loss, x).view(16, 16)
    torch.testing.assert_close(curvature, curvature.T)
    chosen = curvature.diagonal().nonzero().flatten()
    assert len(chosen) == 4  # one of each four entries matters
    step = 1e-4 * torch.eye(16, dtype=torch.float64).view(16, 1, 1, 4, 4)
    for i in chosen:
        slope = loss(x + step[i]) - 2 * loss(x) + loss(x - step[i])
        torch.testing.assert_close(curvature[i, i], slope / 1e-8, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: MnistFC("torch"), "order"),
        (lambda: MnistFC(dropout=1.0), "dropout"),
        (lambda: MnistFC(input_dropout=-0.1), "input_dropout"),
        (lambda: MnistConv("torch"), "order"),
        (lambda: MnistConv(dropout=1.0), "dropout"),
        (lambda: AllCNN(input_dropout=1.0), "input_dropout"),
        (lambda: AllCNN(dropout=1.5), "dropout"),
        (lambda: AllCNN(width=0), "width"),
        (lambda: SmallLeNet("square"), "pool"),
        (lambda: SmallLeNet(std=-1.0), "std"),
        (lambda: SmallMnistFC(width=0), "width"),
    ],
)
def test_bad_arguments_are_refused_by_name(build, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        build()
