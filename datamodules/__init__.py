"""Where batches come from."""

from datamodules.images import MNIST, Digits, FashionMNIST, Images
from datamodules.memory import Loader
from datamodules.transforms import Augmentation, Compose, RandomFlip, RandomShift

__all__ = [
    "MNIST",
    "Augmentation",
    "Compose",
    "Digits",
    "FashionMNIST",
    "Images",
    "Loader",
    "RandomFlip",
    "RandomShift",
]
