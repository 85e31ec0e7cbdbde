"""Where data sets are, and downloads: checked, and whole or not there at all."""

import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchvision.datasets.utils import check_md5, download_url

from lightning_ecd.errors import UserError

_TIMEOUT = 10.0  # seconds that a silent server is waited for
#: What to do where files are missing: goes on with what the folder must have.
REMEDY = "set data_dir or the environment variable LIGHTNING_ECD_DATA to a folder"
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


def fetch(path: Path, mirrors: Sequence[str], md5: str) -> None:
    """Download a file.

    Args:
        path: Where the file shall be; its name is also that at the mirrors.
        mirrors: Addresses ending in a slash, tried in this order.
        md5: The checksum of the file.

    Raises:
        UserError: The folder is not writable, or no mirror has the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        raise UserError(
            f"{path} is missing and cannot be downloaded, since the folder "
            f"{path.parent} is not writable ({error.strerror}): {REMEDY} that has the "
            "file or can be written"
        ) from error
    failures = []
    with place as folder, _timeout(_TIMEOUT):
        for mirror in mirrors:
            try:
                download_url(mirror + path.name, folder, path.name, md5)
                os.replace(Path(folder, path.name), path)
                return
            except (OSError, RuntimeError) as error:  # URLError is an OSError
                failures.append(f"{mirror}: {error}")
    raise UserError(
        f"{path} is missing and could not be downloaded ({'; '.join(failures)}): put "
        f"the file there, or {REMEDY} that has it"
    )


def fetch_members(
    archive: Path, mirrors: Sequence[str], md5: str, members: Sequence[str]
) -> None:
    """Unpack files of a tar archive beside it; download it if it is not there.

    Args:
        archive: Where the archive is or shall be; it is kept.
        mirrors: Addresses ending in a slash, tried in this order.
        md5: The checksum of the archive.
        members: The files wanted, by their names in the archive.

    Raises:
        UserError: The archive is damaged or cannot be had, or the folder is not
            writable.
    """
    if not archive.is_file():
        fetch(archive, mirrors, md5)
    elif not check_md5(str(archive), md5):
        raise UserError(
            f"{archive} is damaged (its md5 is not {md5}): delete it, so that it is "
            "downloaded again"
        )
    folder = archive.parent
    try:
        with (
            tempfile.TemporaryDirectory(dir=folder) as place,
            tarfile.open(archive) as tar,
        ):
            for member in tar:  # in their order: going back would unpack again
                content = tar.extractfile(member) if member.name in members else None
                if content is not None:
                    whole, target = Path(place, "member"), folder / member.name
                    with whole.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(whole, target)
    except OSError as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error.strerror}): {REMEDY} that can be "
            f"written or has the files of the archive"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Limit how long new connections wait."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
