"""Data modules of images that are kept in memory, on the training device."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from datamodules.memory import (
    SPLIT_STREAM,
    DataModule,
    Last,
    Loader,
    Order,
)
from datamodules.transforms import Augmentation
from lightning_ecd import pool
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.randomness import generator

Part = Literal["train", "test"]
Scale = Literal["unit", "signed", "raw", "image", "global"]
Targets = Literal["classes", "numbers"]


class Images(DataModule):
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
            independent draws with "replacement", or "independent" batches of distinct
            samples.
        augment: Changes whole batches of training images: an `Augmentation` or any
            function like its `__call__`, for images in uint8.
        eval_batch_size: The most samples in a batch of validation, test, prediction.
        last: What becomes of an epoch's last, incomplete training batch: "short" keeps
            it, "drop" leaves it out.
        scale: Of the pixels that the network sees: "unit": in [0, 1]; "signed":
            (x - 126)/126 of the bytes x, about [-1, 1]; "raw": the bytes themselves,
            these two as in the Lua and the PyTorch program of Entropy-SGD; "image":
            every image by itself to mean 0 and variance 1 over its N values,
            (x - mean)/max(std, 1/sqrt(N)) of x in [0, 1]; "global": by the mean and
            the standard deviation of all pixels of the training set.
        targets: "classes", or "numbers": the class's number as a float, scaled to
            mean 0 and variance 1 over the training set, for regression.
        samples: Of the training set, drawn with equal shares of its classes as
            scikit-learn's train_test_split does; the validation's come from the
            others. None: all.
        steps_per_epoch: Batches in an epoch of "independent" ones; None: what fits.
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
        last: Last = "short",
        scale: Scale = "unit",
        split_seed: int | None = None,
        targets: Targets = "classes",
        samples: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(1, minibatches=minibatches)
        at_least(1, eval_batch_size=eval_batch_size)
        one_of(get_args(Order), order=order)
        one_of(get_args(Last), last=last)
        one_of(get_args(Targets), targets=targets)
        one_of(get_args(Scale), scale=scale)
        if normalize and scale != "unit":
            raise ValueError(f"scale must be unit with normalize=True, got {scale!r}")
        share = isinstance(val_size, float)
        count = round(val_size * self.train_size) if share else int(val_size)
        if not share <= count < self.train_size:  # a share of nothing is a mistake
            raise ValueError(
                f"val_size must lie in [0, {self.train_size - 1}], or a share in "
                f"(0, 1), got {val_size}"
            )
        if samples is not None and not 1 <= samples <= self.train_size - count:
            raise ValueError(
                f"samples must lie in [1, {self.train_size - count}] with val_size="
                f"{count}, got {samples}"
            )
        self.targets, self.samples = targets, samples
        self.steps_per_epoch = steps_per_epoch
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.minibatches, self.last = minibatches, last
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
        if self.samples is not None:
            return self._stratified(self.samples)
        draws = generator(self.split_seed, SPLIT_STREAM)
        indices = torch.randperm(self.train_size, generator=draws)
        return indices[self.val_size :].sort()[0], indices[: self.val_size].sort()[0]

    def train_dataloader(self) -> Loader:
        """Return the loader of the training samples that are not for validation."""
        return self._loader(
            "train",
            self.split()[0],
            batch_size=self.batch_size,
            minibatches=self.minibatches,
            order="sequential" if self.overfits else self.order,
            last=self.last,
            augment=self.augment,
            steps_per_epoch=None if self.overfits else self.steps_per_epoch,
        )

    def _stratified(self, count: int) -> tuple[Tensor, Tensor]:
        """Return training samples with the shares of the classes, and others."""
        from sklearn.model_selection import train_test_split  # takes a second

        labels = self.whole("train")[1].cpu()
        numbers = torch.arange(len(labels)).numpy()
        if count == len(numbers):
            return torch.from_numpy(numbers), torch.arange(0)
        chosen, rest = train_test_split(
            numbers,
            train_size=count,
            stratify=labels.numpy(),
            random_state=self.split_seed,
        )
        return torch.from_numpy(chosen), torch.from_numpy(rest[: self.val_size])

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
        self._parts[part] = images.to(self.device), labels.to(self.device)
        return self._parts[part]

    @property
    def target_moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the classes' numbers in the training set."""
        if self.targets == "classes":
            return 0.0, 1.0
        numbers = self.whole("train")[1].double()
        return numbers.mean().item(), numbers.std().item()

    def _read(self, part: Part) -> tuple[Tensor, ...]:
        kind = type(self)
        source = [str(getattr(self, name)) for name in self.read_from]
        key = (kind.__module__, kind.__qualname__, *source, part)
        return pool.lent(key, partial(self.read, part))

    def _evaluation(self, part: Part, indices: Tensor | None = None) -> Loader:
        size = self.eval_batch_size
        order: Order = "sequential"
        return self._loader(part, indices, batch_size=size, order=order, last="even")

    def _loader(self, part: Part, indices: Tensor | None, **settings: Any) -> Loader:
        images, labels = self.whole(part)
        if self.targets == "numbers":
            mean, std = self.target_moments
            labels = ((labels.double() - mean) / std).float()
        return Loader(
            (images, labels),
            indices,
            prepare=self._floats(),
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            **settings,
        )

    def _floats(self) -> Callable[[Tensor], Tensor]:
        """Return the function from uint8 to what the network sees."""
        device, shift = self.device, None
        # Tensors: CUDA turns a division by a number into an inexact product.
        sizes = {"unit": self.top, "signed": self.centre, "raw": 1, "image": self.top}
        scale = torch.tensor(float(sizes.get(self.scale, 1)), device=device)
        if self.scale == "signed":
            shift = scale
        if self.scale == "global":
            moments = _byte_moments(self.whole("train")[0])
            shift, scale = (torch.tensor(value, device=device) for value in moments)
        if self.normalize:
            shift = torch.tensor(self.mean, device=device).view(-1, 1, 1) * scale
            scale = torch.tensor(self.std, device=device).view(-1, 1, 1) * scale
        if self.scale == "image":
            return partial(_standardised, scale=scale)
        return partial(_scaled, shift=shift, scale=scale)


def _byte_moments(images: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of bytes, from how often each occurs."""
    parts = images.split(1000)  # bincount makes eight bytes of one
    counts = torch.stack([torch.bincount(p.flatten(), minlength=256) for p in parts])
    counts = counts.sum(0).double().cpu()
    values, total = torch.arange(256, dtype=torch.float64), counts.sum()
    mean = (counts * values).sum() / total
    variance = (counts * (values - mean) ** 2).sum() / (total - 1)
    return mean.item(), variance.sqrt().item()


def _scaled(images: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    floats = images.to(torch.float32)
    return (floats if shift is None else floats.sub_(shift)).div_(scale)


def _standardised(images: Tensor, scale: Tensor) -> Tensor:
    floats = images.to(torch.float32) / scale
    mean = floats.mean((1, 2, 3), keepdim=True)
    std = floats.std((1, 2, 3), correction=0, keepdim=True)
    return (floats - mean).div_(std.clamp_min(floats[0].numel() ** -0.5))
