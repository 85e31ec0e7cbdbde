"""Where batches come from."""

from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.collocation import Collocation
from datamodules.images import Images
from datamodules.memory import Loader
from datamodules.mnist import MNIST, Digits, FashionMNIST
from datamodules.populations import Gaussians, Populations, Samples
from datamodules.regression import Regression, SmallImages, SyntheticPowerLaw
from datamodules.steps import Steps
from datamodules.streams import ImageStreams, Quadratics, Streams
from datamodules.text import Text
from datamodules.tiny_imagenet import TinyImageNet
from datamodules.transforms import (
    Augmentation,
    Compose,
    RandomBrightness,
    RandomFlip,
    RandomShift,
)
from datamodules.uci import UCI

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "UCI",
    "Augmentation",
    "Collocation",
    "Compose",
    "Digits",
    "FashionMNIST",
    "Gaussians",
    "ImageStreams",
    "Images",
    "Loader",
    "Populations",
    "Quadratics",
    "Regression",
    "SmallImages",
    "SyntheticPowerLaw",
    "RandomBrightness",
    "RandomFlip",
    "RandomShift",
    "Samples",
    "Steps",
    "Streams",
    "Text",
    "TinyImageNet",
]
