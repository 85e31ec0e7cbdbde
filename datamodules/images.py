"""Data modules of images that are kept in memory, on the training device."""

import os
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import pytorch_lightning as pl
import torch
import torchvision
from torch import Tensor

from datamodules.downloads import fetch
from datamodules.idx import IdxFile
from datamodules.memory import (
    SPLIT_STREAM,
    Loader,
    Order,
    at_least_one,
    one_of,
)
from datamodules.transforms import Augmentation
from lightning_ecd import pool
from lightning_ecd.randomness import generator

Part = Literal["train", "test"]
Scale = Literal["unit", "signed", "raw", "image"]
#: What `data_dir` is unless it is given.
DEFAULT_FOLDER = "data"


def data_root(data_dir: str) -> Path:
    """Return the folder of all data sets.

    Args:
        data_dir: As given; the environment variable LIGHTNING_ECD_DATA overrides
            the default.
    """
    if data_dir == DEFAULT_FOLDER:
        data_dir = os.environ.get("LIGHTNING_ECD_DATA") or data_dir
    return Path(data_dir).expanduser()


class Images(pl.LightningDataModule):
    """Labelled images: uint8 in memory, float32 in the batches.

    The tensors move to the training device once and all loaders share them; a split
    is a vector of indices. Under several ranks a training batch is divided among
    them, `batch_size` samples each; an evaluation goes over every sample exactly
    once, in batches whose sizes differ by at most one.

    Args:
        batch_size: Samples in a mini-batch of one rank.
        val_size: Samples taken from the training set for validation, a number or a
            share below 1.0; 0: none.
        seed: Of the order of the batches, the augmentation and the validation split.
        split_seed: Of the validation split alone; None: `seed`.
        minibatches: Mini-batches in a loader batch, which is that many times larger.
        normalize: Shift and scale to mean 0 and variance 1 over the training set.
        order: Of the training samples in an epoch: "shuffled", "sequential", or
            independent draws with "replacement".
        augment: Changes whole batches of training images: an `Augmentation` or any
            function like its `__call__`, for images in uint8.
        eval_batch_size: The most samples in a batch of validation, test, prediction.
        drop_last: Leave out an epoch's last, incomplete training batch.
        scale: Of the pixels that the network sees: "unit": in [0, 1]; "signed":
            (x - 126)/126 of the bytes x, about [-1, 1]; "raw": the bytes themselves,
            these two as in the Lua and the PyTorch program of Entropy-SGD; "image":
            every image by itself to mean 0 and variance 1 over its N values,
            (x - mean)/max(std, 1/sqrt(N)) of x in [0, 1].
    """

    classes: ClassVar[int] = 10
    shape: ClassVar[tuple[int, int, int]]
    train_size: ClassVar[int]
    top: ClassVar[int] = 255
    #: What "signed" maps to 0.
    centre: ClassVar[int] = 126
    #: Attributes that `read` depends on: data sets equal in them may be shared.
    read_from: ClassVar[tuple[str, ...]] = ()
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        batch_size: int = 50,
        val_size: int | float = 5000,
        seed: int = 0,
        minibatches: int = 1,
        normalize: bool = False,
        order: Order = "shuffled",
        augment: Augmentation | None = None,
        eval_batch_size: int = 1000,
        drop_last: bool = False,
        scale: Scale = "unit",
        split_seed: int | None = None,
    ) -> None:
        super().__init__()
        at_least_one("batch_size", batch_size)
        at_least_one("minibatches", minibatches)
        at_least_one("eval_batch_size", eval_batch_size)
        one_of("order", order, ("shuffled", "sequential", "replacement"))
        one_of("scale", scale, get_args(Scale))
        if normalize and scale != "unit":
            raise ValueError(f"scale must be unit with normalize=True, not {scale!r}")
        share = isinstance(val_size, float)
        count = round(val_size * self.train_size) if share else int(val_size)
        if not share <= count < self.train_size:  # a share of nothing is a mistake
            raise ValueError(
                f"val_size must be in [0, {self.train_size - 1}], or a share in "
                f"(0, 1), not {val_size}"
            )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.minibatches, self.drop_last = minibatches, drop_last
        self.val_size, self.seed = count, seed
        self.split_seed = seed if split_seed is None else split_seed
        self.order, self.augment = order, augment
        self.normalize, self.scale = normalize, scale
        self._parts: dict[Part, tuple[Tensor, Tensor]] = {}
        # Plain data only; the number of mini-batches belongs to the model, and
        # Lightning refuses to log one name with two values.
        self.save_hyperparameters(ignore=["augment", "minibatches"])

    @abstractmethod
    def read(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return the images (N, C, H, W), uint8, and their labels (N,), int64."""

    def setup(self, stage: str | None = None) -> None:
        """Read what a stage needs; what was read before is kept.

        Args:
            stage: "fit", "validate", "test" or "predict"; None: all.
        """
        if stage in (None, "fit", "validate"):
            self.whole("train")
        if stage in (None, "test", "predict"):
            self.whole("test")

    def split(self) -> tuple[Tensor, Tensor]:
        """Return the sorted indices of training and validation samples."""
        draws = generator(self.split_seed, SPLIT_STREAM)
        indices = torch.randperm(self.train_size, generator=draws)
        return indices[self.val_size :].sort()[0], indices[: self.val_size].sort()[0]

    def train_dataloader(self) -> Loader:
        """Return the loader of the training samples that are not for validation."""
        # Lightning announces that overfit_batches turns the shuffling off
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader(
            "train",
            self.split()[0],
            batch_size=self.batch_size,
            minibatches=self.minibatches,
            order="sequential" if overfit else self.order,
            last="drop" if self.drop_last else "short",
            augment=self.augment,
        )

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the validation loader, or an empty list if `val_size` is 0."""
        if self.val_size == 0:
            return []
        return self._evaluation("train", self.split()[1])

    def test_dataloader(self) -> Loader:
        """Return the loader of the test set."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Loader:
        """Return the loader of the test set, in its own order."""
        return self._evaluation("test")

    def whole(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return images and labels, read once, on the device of the trainer."""
        images, labels = self._parts.get(part) or self._read(part)
        self._parts[part] = images.to(self._device), labels.to(self._device)
        return self._parts[part]

    def _read(self, part: Part) -> tuple[Tensor, ...]:
        kind = type(self)
        source = [str(getattr(self, name)) for name in self.read_from]
        key = (kind.__module__, kind.__qualname__, *source, part)
        return pool.lent(key, partial(self.read, part))

    @property
    def _device(self) -> torch.device:
        if self.trainer is None:
            return torch.device("cpu")
        return self.trainer.strategy.root_device

    def _evaluation(self, part: Part, indices: Tensor | None = None) -> Loader:
        size = self.eval_batch_size
        order: Order = "sequential"
        return self._loader(part, indices, batch_size=size, order=order, last="even")

    def _loader(self, part: Part, indices: Tensor | None, **settings: Any) -> Loader:
        trainer = self.trainer
        return Loader(
            self.whole(part),
            indices,
            prepare=self._floats(),
            seed=self.seed,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            **settings,
        )

    def _floats(self) -> Callable[[Tensor], Tensor]:
        """Return the function from uint8 to what the network sees."""
        device, shift = self._device, None
        # Tensors: CUDA turns a division by a number into an inexact product.
        sizes = {"unit": self.top, "signed": self.centre, "raw": 1, "image": self.top}
        scale = torch.tensor(float(sizes[self.scale]), device=device)
        if self.scale == "signed":
            shift = scale
        if self.normalize:
            shift = torch.tensor(self.mean, device=device).view(-1, 1, 1) * scale
            scale = torch.tensor(self.std, device=device).view(-1, 1, 1) * scale
        if self.scale == "image":
            return partial(_standardised, scale=scale)
        return partial(_scaled, shift=shift, scale=scale)


def _scaled(images: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    floats = images.to(torch.float32)
    return (floats if shift is None else floats.sub_(shift)).div_(scale)


def _standardised(images: Tensor, scale: Tensor) -> Tensor:
    floats = images.to(torch.float32) / scale
    mean = floats.mean((1, 2, 3), keepdim=True)
    std = floats.std((1, 2, 3), correction=0, keepdim=True)
    return (floats - mean).div_(std.clamp_min(floats[0].numel() ** -0.5))


class MNIST(Images):
    """Handwritten digits, 28 x 28: 60000 for training, 10000 for testing.

    Read from ``<data_dir>/MNIST/raw``, packed (.gz) or not. The folder may be
    read-only: nothing is written unless a file is missing and must be downloaded.

    Args:
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        kwargs: As for `Images`.

    Reference:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied
        to document recognition, Proceedings of the IEEE 86 (1998).
    """

    shape = (1, 28, 28)
    train_size = 60000
    mean, std = (0.1307,), (0.3081,)
    read_from = ("data_dir",)
    source: ClassVar[Any] = torchvision.datasets.MNIST
    md5: ClassVar[tuple[str, str, str, str]] = (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    )

    def __init__(self, data_dir: str = DEFAULT_FOLDER, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = data_dir

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return data_root(self.data_dir) / self.source.__name__ / "raw"

    @property
    def files(self) -> dict[str, IdxFile]:
        """The four files and what they must contain."""
        names = {"train": ("train", 60000), "test": ("t10k", 10000)}
        sums = iter(self.md5)
        table = {}
        for part, (prefix, size) in names.items():
            for kind, shape in (("images", (size, 28, 28)), ("labels", (size,))):
                name = f"{prefix}-{kind}-idx{len(shape)}-ubyte"
                table[f"{part} {kind}"] = IdxFile(name, shape, next(sums))
        return table

    def read(self, part: Part) -> tuple[Tensor, Tensor]:  # noqa: D102
        images = self.files[f"{part} images"].read(self.folder).unsqueeze(1)
        return images, self.files[f"{part} labels"].read(self.folder).long()

    def prepare_data(self) -> None:
        """Download the files that are missing."""
        sums = dict(self.source.resources)
        for file in self.files.values():
            if file.found(self.folder) is None:
                packed = f"{file.name}.gz"
                fetch(self.folder / packed, self.source.mirrors, sums[packed])


class FashionMNIST(MNIST):
    """Pictures of clothes, 28 x 28: 60000 for training, 10000 for testing.

    Read from ``<data_dir>/FashionMNIST/raw``, else as `MNIST`.

    Args:
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        kwargs: As for `Images`.

    Reference:
        H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST: a novel image dataset for
        benchmarking machine learning algorithms, arXiv:1708.07747.
    """

    mean, std = (0.2860,), (0.3530,)
    source = torchvision.datasets.FashionMNIST
    md5 = (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    )


class Digits(Images):
    """Handwritten digits, 8 x 8, that come with scikit-learn: needs no files.

    Of the 1797 images, 297 are the test set, the same for every `seed`. Pixels go up
    to 16: "signed" is (x - 8)/8.

    Args:
        val_size: Samples taken from the 1500 for validation, a number or a share below
            1.0; 0: none.
        kwargs: As for `Images`.

    Reference:
        E. Alpaydin, C. Kaynak, Optical recognition of handwritten digits, UCI
        machine learning repository (1998).
    """

    shape = (1, 8, 8)
    train_size = 1500
    top, centre = 16, 8
    mean, std = (0.3054,), (0.3760,)

    def __init__(self, val_size: int | float = 250, **kwargs: Any) -> None:
        super().__init__(val_size=val_size, **kwargs)

    def read(self, part: Part) -> tuple[Tensor, Tensor]:  # noqa: D102
        from sklearn.datasets import load_digits  # takes a second, and 14 MiB

        data = load_digits()
        indices = torch.randperm(len(data.target), generator=generator(0, SPLIT_STREAM))
        train, test = indices[: self.train_size], indices[self.train_size :]
        chosen = train if part == "train" else test
        images = torch.from_numpy(data.images).to(torch.uint8).unsqueeze(1)
        return images[chosen], torch.from_numpy(data.target).long()[chosen]
