"""Tiny-ImageNet, decoded into memory from the unpacked archive."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.downloads import DEFAULT_FOLDER, REMEDY, data_root
from datamodules.images import Images, Part
from lightning_ecd.errors import UserError

_ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class TinyImageNet(Images):
    """Photographs of 200 kinds of things, 64 x 64 in colour: 100000 and 10000.

    Read from ``<data_dir>/tiny-imagenet-200``, the unpacked archive of the authors,
    which is not downloaded. Its labelled "val" part is the test set, since the labels
    of its "test" part are unpublished. Both parts are decoded whenever they are
    first needed, and take 1.2 GB and 0.12 GB.

    Args:
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        val_size: Samples taken from the training set for validation; 0: none.
        kwargs: As for `Images`.

    Reference:
        Y. Le, X. Yang, Tiny ImageNet visual recognition challenge, Stanford
        University CS231N (2015).
    """

    classes = 200
    shape = (3, 64, 64)
    train_size = 100000
    read_from = ("data_dir",)
    test_size: ClassVar[int] = 10000
    # as in the code of ECDSep
    mean, std = (0.480, 0.448, 0.397), (0.276, 0.269, 0.282)

    def __init__(
        self,
        data_dir: str = DEFAULT_FOLDER,
        val_size: int | float = 5000,
        **kwargs: Any,
    ) -> None:
        super().__init__(val_size=val_size, **kwargs)
        self.data_dir = data_dir

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return data_root(self.data_dir) / "tiny-imagenet-200"

    def read(self, part: Part) -> tuple[Tensor, Tensor]:  # noqa: D102
        try:
            files = list(self._files(part))
            size = self.train_size if part == "train" else self.test_size
            if len(files) != size:
                raise ValueError(f"it holds {len(files)} of {size} images for {part}")
            images = torch.empty(size, *self.shape, dtype=torch.uint8)
            paths, labels = zip(*files, strict=True)
            with ThreadPoolExecutor() as pool:  # decoding frees the interpreter
                list(pool.map(lambda i: _decode(paths[i], images[i]), range(size)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder} cannot be used ({error}): unpack {_ADDRESS} there, or "
                f"{REMEDY} that has tiny-imagenet-200"
            ) from error
        return images, torch.tensor(labels)

    def _files(self, part: Part) -> Iterator[tuple[Path, int]]:
        """Yield paths and labels; labels follow the order of wnids.txt."""
        names = (self.folder / "wnids.txt").read_text().split()
        if part == "train":
            for label, name in enumerate(names):
                for path in sorted((self.folder / "train" / name).rglob("*.JPEG")):
                    yield path, label
            return
        table = (self.folder / "val" / "val_annotations.txt").read_text()
        for line in table.splitlines():
            file, name = line.split("\t")[:2]
            yield self.folder / "val" / "images" / file, names.index(name)


def _decode(path: Path, room: Tensor) -> None:
    """Fill `room` (3, H, W) with the pixels of a file, grey ones in three colours."""
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error
    if pixels.shape != room.shape:
        raise ValueError(f"{path} has {tuple(pixels.shape)} pixels")
    room.copy_(pixels)
