"""Contrast normalisation and whitening of images."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Added to the standard deviation along a direction; one below it is dropped.
REGULARIZER = 1e-5
_FLAT = 1e-8  # standard deviation of an image without contrast
_CHUNK = 1000  # images at once: float64 takes eight times the memory of uint8


def contrast_normalized(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images as vectors of mean 0 and variance 1 (global contrast).

    Args:
        images: (N, C, H, W), of any type and scale.
        dtype: Of the result.

    Returns:
        (N, C H W); an image of one value throughout becomes 0.
    """
    x = images.flatten(1).to(dtype)
    x = x - x.mean(1, keepdim=True)
    std = x.std(1, keepdim=True)
    return x.div_(torch.where(std < _FLAT, 1.0, std))


def zca(images: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fit the whitening of contrast-normalised images.

    .. math::
        W = U \operatorname{diag}\left(\frac{1}{s_i + 10^{-5}}\right) U^T

    with the eigenvectors U and the roots s of the eigenvalues of the covariance, in
    float64. After the normalisation nothing varies along the constant vector: such
    directions (s below 1e-5) are dropped, where the gain of 1e5 would blow rounding
    errors up to noise.

    Args:
        images: (N, C, H, W), at least 2.

    Returns:
        The mean (D,) and W (D, D), D = C H W, both float32.
    """
    chunks = images.split(_CHUNK)
    wide = torch.float64
    sums = torch.stack([contrast_normalized(part, wide).sum(0) for part in chunks])
    mean = sums.sum(0) / len(images)
    covariance = torch.zeros(len(mean), len(mean), dtype=wide, device=images.device)
    for part in chunks:
        x = contrast_normalized(part, wide) - mean
        covariance.addmm_(x.T, x)
    eigenvalues, U = torch.linalg.eigh(covariance.div_(len(images) - 1))
    s = eigenvalues.clamp(min=0).sqrt()
    gain = torch.where(s < REGULARIZER, 0.0, 1 / (s + REGULARIZER))
    return mean.float(), ((U * gain) @ U.T).float()


class Whitening:
    """Turns images in uint8 into whitened ones, batch by batch.

    The data stay bytes in memory, an eighth or less of what whitened images take; a
    batch costs a product with a matrix, for 3 x 32 x 32 pixels 19 MFLOP an image.

    Args:
        mean: Of the contrast-normalised training images, (D,).
        matrix: W, (D, D), symmetric.

    Note:
        ``torch.set_float32_matmul_precision("high")`` holds for this product too,
        whose gains of up to 150 for CIFAR-10 enlarge the rounding of TF32.
    """

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        self.mean, self.matrix = mean, matrix

    def to(self, device: torch.device) -> "Whitening":
        """Return the same on a device."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        """Return whitened images, float32, of the shape (B, C, H, W) of `images`."""
        with torch.autocast(images.device.type, enabled=False):
            x = contrast_normalized(images) - self.mean
            return (x @ self.matrix).view(images.shape)


def kept(key: str, images: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and matrix from the user's cache folder, or fit and keep them.

    The folder is ``$XDG_CACHE_HOME/lightning_ecd``, by default
    ``~/.cache/lightning_ecd``. A file counts only if its checksum is right; a damaged
    one is fitted and written anew.

    Args:
        key: Of the images, such as their checksums.
        images: Reads the training images.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = hashlib.sha256(f"{key} {REGULARIZER}".encode()).hexdigest()[:16]
    file = Path(base).expanduser() / "lightning_ecd" / f"whitening-{name}.bin"
    try:
        return _decoded(file.read_bytes())
    except (OSError, ValueError):  # not there, or damaged
        mean, matrix = zca(images())
    try:
        _write_whole(file, _encoded(mean, matrix))
    except OSError as error:
        warnings.warn(
            f"the whitening cannot be kept in {file} ({error.strerror}), and will be "
            "fitted again: set the environment variable XDG_CACHE_HOME to a folder "
            "that can be written",
            stacklevel=2,
        )
    return mean, matrix


def _encoded(mean: Tensor, matrix: Tensor) -> bytes:
    content = torch.cat([mean[None], matrix]).numpy().astype("<f4").tobytes()
    return hashlib.sha256(content).digest() + content


def _decoded(encoded: bytes) -> tuple[Tensor, Tensor]:
    digest, content = encoded[:32], encoded[32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("the checksum is wrong")
    values = torch.from_numpy(np.frombuffer(content, "<f4").astype(np.float32))
    table = values.view(-1, int(len(values) ** 0.5))  # (D + 1, D)
    return table[0], table[1:]


def _write_whole(file: Path, content: bytes) -> None:
    """Write so that nobody ever sees a part of it."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(beside, file)
    except OSError:
        os.unlink(beside)
        raise
