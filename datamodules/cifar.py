"""CIFAR-10 and CIFAR-100, read without unpickling anything."""

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import torch
import torchvision
from torch import Tensor

from datamodules.downloads import DEFAULT_FOLDER, REMEDY, data_root, fetch_members
from datamodules.images import Images, Part
from datamodules.whitening import Whitening, kept
from lightning_ecd import pool
from lightning_ecd.checks import above
from lightning_ecd.errors import UserError

_CHUNK = 1 << 20


class CIFAR10(Images):
    """Photographs of ten kinds of things, 32 x 32 in colour: 50000 and 10000.

    Read from ``<data_dir>/cifar-10-batches-py``, the unpacked archive of the authors,
    or from the archive itself. The folder may be read-only: nothing is written unless
    files are missing. The files are pickles of Python 2; they are parsed as plain
    bytes, straight into the memory of the images, and count only if their md5 is
    right.

    Args:
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        mean: Of the three colours in [0, 1], subtracted with ``normalize=True``;
            None: of the training set, (0.4914, 0.4822, 0.4465) for CIFAR-10.
        std: Of the three colours, divided by with ``normalize=True``; None: of the
            training set, (0.2470, 0.2435, 0.2616) for CIFAR-10. Much published code,
            that of BBI included, has (0.2023, 0.1994, 0.2010), the mean standard
            deviation within an image.
        whiten: Normalise the contrast of every image (mean 0, variance 1 over its
            pixels and colours), then decorrelate all pixels (ZCA), as for Entropy-SGD.
            Fitted to all 50000 training images, those for validation included, in
            about a minute, and kept in the user's cache folder.
        kwargs: As for `Images`.

    Reference:
        A. Krizhevsky, Learning multiple layers of features from tiny images,
        University of Toronto (2009).
    """

    shape = (3, 32, 32)
    train_size = 50000
    read_from = ("data_dir",)
    test_size: ClassVar[int] = 10000
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    #: Names, addresses and checksums.
    source: ClassVar[Any] = torchvision.datasets.CIFAR10
    #: Under which name a file keeps its labels.
    key: ClassVar[str] = "labels"

    def __init__(
        self,
        data_dir: str = DEFAULT_FOLDER,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        whiten: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        above(0, std=None if std is None else min(std))
        self.data_dir = data_dir
        self.mean, self.std = mean or self.mean, std or self.std
        if whiten and (self.normalize or self.scale != "unit"):
            raise ValueError(
                "whiten must be False unless scale and normalize are unset"
            )
        self.whiten = whiten
        self._whitening: Whitening | None = None

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return data_root(self.data_dir) / self.source.base_folder

    def files(self, part: Part) -> list[tuple[str, str]]:
        """Return names and checksums of the files of a part."""
        listed = self.source.train_list if part == "train" else self.source.test_list
        return [(name, md5) for name, md5 in listed]

    def read(self, part: Part) -> tuple[Tensor, Tensor]:  # noqa: D102
        files = self.files(part)
        size = self.train_size if part == "train" else self.test_size
        images = torch.empty(size, *self.shape, dtype=torch.uint8)
        labels = [
            read_batch(self.folder / name, md5, self.key, room)
            for (name, md5), room in zip(files, images.chunk(len(files)), strict=True)
        ]
        return images, torch.cat(labels)

    def prepare_data(self) -> None:
        """Download and unpack what is missing; fit the whitening."""
        names = [name for part in ("train", "test") for name, _ in self.files(part)]
        if not all((self.folder / name).is_file() for name in names):
            mirror = self.source.url.removesuffix(self.source.filename)
            archive = self.folder.parent / self.source.filename
            members = [f"{self.source.base_folder}/{name}" for name in names]
            fetch_members(archive, [mirror], self.source.tgz_md5, members)
        self._floats()  # on one process of each machine; the others find it kept

    def _floats(self) -> Callable[[Tensor], Tensor]:
        if not self.whiten:
            return super()._floats()
        if self._whitening is None:
            sums = " ".join(md5 for _, md5 in self.files("train"))
            read = partial(kept, sums, lambda: self._read("train")[0])
            self._whitening = Whitening(*pool.lent(("whitening", sums), read))
        self._whitening = self._whitening.to(self.device)
        return self._whitening


class CIFAR100(CIFAR10):
    """Photographs of a hundred kinds of things, 32 x 32 in colour: 50000 and 10000.

    Read from ``<data_dir>/cifar-100-python``, else as `CIFAR10`.

    Args:
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        mean: Of the three colours in [0, 1], subtracted with ``normalize=True``;
            None: of the training set, (0.5071, 0.4865, 0.4409).
        std: Of the three colours, divided by with ``normalize=True``; None: of the
            training set, (0.2673, 0.2564, 0.2762).
        whiten: See `CIFAR10`.
        kwargs: As for `Images`.

    Reference:
        A. Krizhevsky, Learning multiple layers of features from tiny images,
        University of Toronto (2009).
    """

    classes = 100
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    source = torchvision.datasets.CIFAR100
    key = "fine_labels"


def read_batch(path: Path, md5: str, key: str, images: Tensor) -> Tensor:
    """Read a file of the published archives.

    Args:
        path: Of the file.
        md5: Its checksum.
        key: Under which name it keeps its labels.
        images: Where the images go, (N, C, H, W), uint8, contiguous.

    Returns:
        The labels (N,), int64.

    Raises:
        UserError: The file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: `prepare_data` downloads it; offline, {REMEDY} that "
            f"has {path.parent.name}"
        )
    try:
        with path.open("rb") as file:
            return _decoded(cast(BinaryIO, file), md5, key, images)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): delete it, so that it is unpacked or "
            f"downloaded again, or {REMEDY} with a good copy"
        ) from error


def _decoded(file: BinaryIO, md5: str, key: str, images: Tensor) -> Tensor:
    """Fill `images` and return the labels, wherever in the file both are.

    The images are one string (opcode T, length, bytes); the labels, all below 256,
    are a list (opcode ]) of one-byte integers (K), appended by up to a thousand
    between ( and e. What follows a key or an opening bracket is a place in the
    pickle's memo (q, or r if it is large).
    """
    room = images.view(-1).numpy().data
    mark = b"T" + len(room).to_bytes(4, "little")
    head = b""
    while mark not in head:
        more = file.read(_CHUNK)
        if not more:
            raise ValueError(f"it does not hold {len(images)} images")
        head += more
    head = head[: head.index(mark) + len(mark)]
    file.seek(len(head))
    filled = file.readinto(room)  # type: ignore[attr-defined]
    if filled < len(room):
        raise ValueError(f"it ends after {filled} of {len(room)} values")
    rest = file.read()
    found = hashlib.md5(head, usedforsecurity=False)
    found.update(room)
    found.update(rest)
    if found.hexdigest() != md5:
        raise ValueError(f"its md5 is {found.hexdigest()} instead of {md5}")
    memo = rb"(?:q.|r.{4})"
    pattern = b"U%c%b" % (len(key), key.encode()) + memo + rb"\]" + memo
    lists = re.search(pattern + rb"((?:\((?:K.)+e)+)", head + rest, re.DOTALL)
    values = b"".join(re.findall(rb"K(.)", lists[1], re.DOTALL)) if lists else b""
    if len(values) != len(images):
        raise ValueError(f"it holds {len(values)} {key} for {len(images)} images")
    return torch.tensor(list(values))
