"""Images of digits and clothes."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import Tensor

from datamodules.downloads import DEFAULT_FOLDER, data_root, fetch
from datamodules.idx import IdxFile
from datamodules.images import Images, Part
from datamodules.memory import SPLIT_STREAM
from lightning_ecd.randomness import generator


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
        benchmarking machine learning algorithms, arXiv 1708.07747.
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
