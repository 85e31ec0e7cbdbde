"""Files in the idx format of MNIST, packed by gzip or not.

A file is decoded straight into the memory of its tensor and hashed on the way.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from datamodules.downloads import REMEDY
from lightning_ecd.errors import UserError

_CHUNK = 1 << 20


class IdxFile(NamedTuple):
    """What a file must contain.

    Args:
        name: Without the ending .gz.
        shape: Of its bytes.
        md5: Of the unpacked file, so that it does not matter who packed it, and how.
    """

    name: str
    shape: tuple[int, ...]
    md5: str

    def found(self, folder: Path) -> Path | None:
        """Return the path of the unpacked or else the packed file, if there is one."""
        for path in (folder / self.name, folder / f"{self.name}.gz"):
            if path.is_file():
                return path
        return None

    def read(self, folder: Path) -> Tensor:
        """Return the contents as uint8, once they have proved genuine.

        Args:
            folder: Where the file is.

        Returns:
            A tensor of the shape the file must have.

        Raises:
            UserError: The file is missing or damaged.
        """
        path = self.found(folder)
        if path is None:
            raise UserError(
                f"{folder / self.name}[.gz] is missing: `prepare_data` downloads it; "
                f"offline, {REMEDY} that has it"
            )
        try:
            opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
            with cast(BinaryIO, opened) as file:
                return self._decoded(file)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise UserError(
                f"{path} cannot be used ({error}): delete it, so that it is downloaded "
                f"again, or {REMEDY} with a good copy"
            ) from error

    def _decoded(self, file: BinaryIO) -> Tensor:
        header = bytes([0, 0, 8, len(self.shape)])  # 8: unsigned bytes
        header += b"".join(size.to_bytes(4, "big") for size in self.shape)
        if file.read(len(header)) != header:
            raise ValueError(f"it does not start as idx data of shape {self.shape}")
        md5 = hashlib.md5(header, usedforsecurity=False)
        data = torch.empty(math.prod(self.shape), dtype=torch.uint8)
        room = data.numpy().data
        # gzip's readinto makes a copy of what it reads: by pieces, a small one
        filled = 0
        while count := file.readinto(room[filled : filled + _CHUNK]):  # type: ignore[attr-defined]
            md5.update(room[filled : filled + count])
            filled += count
        if filled < len(room):
            raise ValueError(f"it ends after {filled} of {len(room)} values")
        if file.read(1):  # also makes gzip compare its own checksum
            raise ValueError(f"it goes on after {len(room)} values")
        if md5.hexdigest() != self.md5:
            raise ValueError(f"its md5 is {md5.hexdigest()} instead of {self.md5}")
        return data.view(self.shape)
