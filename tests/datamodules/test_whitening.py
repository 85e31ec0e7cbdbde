import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from datamodules import CIFAR10, Digits, Images, Loader
from datamodules.whitening import (
    Whitening,
    contrast_normalized,
    kept,
    zca,
)

SHAPE = (3, 4, 4)
SIZE = 48


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder of these tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lightning_ecd"


def pictures(n=400, seed=0):
    """Bytes that are brighter in one corner and alike in neighbouring pixels."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *SHAPE, generator=draws).cumsum(2).cumsum(3)
    x = x + 0.5 * torch.randn(n, 1, 1, 1, generator=draws)
    return x.mul_(20).add_(120).round_().clamp_(0, 255).to(torch.uint8)


def normalized(images):
    """As the released program: mean and standard deviation with ddof = 1."""
    x = images.flatten(1).numpy().astype(np.float64)
    x -= x.mean(1, keepdims=True)
    std = x.std(1, ddof=1, keepdims=True)
    std[std < 1e-8] = 1
    return x / std


def test_contrast_is_normalised_over_all_pixels_and_colours():
    images = pictures(20)
    images[3] = 77  # no contrast
    x = contrast_normalized(images, torch.float64)
    assert_close(x, torch.from_numpy(normalized(images)))
    assert (x[3] == 0).all()
    torch.testing.assert_close(x[0].var(), torch.tensor(1.0).double())


def test_the_fit_is_that_of_the_singular_values():
    images = pictures()
    x = normalized(images)
    mean = x.mean(0)
    U, S, _ = np.linalg.svd((x - mean).T / np.sqrt(len(x) - 1), full_matrices=False)
    assert S[-1] < 1e-12 and S[-2] > 1e-3  # the constant vector alone is null
    gain = 1 / (S + 1e-5)
    gain[-1] = 0
    found_mean, W = zca(images)
    assert_close(found_mean.double(), torch.from_numpy(mean), rtol=1e-6, atol=1e-7)
    expected = torch.from_numpy(U * gain @ U.T)
    assert_close(W.double(), expected, rtol=1e-5, atol=1e-6)


def test_whitened_images_are_uncorrelated_and_of_variance_1():
    images = pictures()
    white = Whitening(*zca(images))(images)
    assert white.shape == images.shape and white.dtype == torch.float32
    covariance = white.flatten(1).double().T.cov()
    expected = torch.eye(SIZE).double() - 1 / SIZE  # nothing along the constant vector
    assert_close(covariance, expected, rtol=0, atol=1e-3)
    assert_close(white.mean(0), torch.zeros(SHAPE), rtol=0, atol=1e-4)


def test_brightness_and_contrast_do_not_matter():
    images = pictures() // 4
    whiten = Whitening(*zca(images))
    assert_close(whiten(images), whiten(2 * images + 9), rtol=0, atol=1e-4)


def test_directions_without_variance_are_dropped():
    images = pictures(10)  # fewer than pixels
    white = Whitening(*zca(images))(images)
    assert torch.isfinite(white).all() and white.abs().max() < 10
    rank = torch.linalg.matrix_rank(white.flatten(1).double(), rtol=1e-3)
    assert rank == 9


def refuse():
    raise AssertionError("the images are read again")


def test_a_fit_is_kept(cache):
    first = kept("some key", pictures)
    again = kept("some key", refuse)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    [file] = cache.iterdir()
    assert file.stat().st_size == 32 + 4 * SIZE * (SIZE + 1)
    kept("another key", lambda: pictures(seed=1))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_fit_is_made_anew(cache, damage):
    first = kept("some key", pictures)
    [file] = cache.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[1000] ^= 1
    file.write_bytes(content[: {"flip": None, "cut": -4, "empty": 0}[damage]])
    calls = []
    again = kept("some key", lambda: calls.append(1) or pictures())
    assert calls and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    kept("some key", refuse)


def test_without_a_place_to_keep_it_the_fit_is_returned_with_a_warning(
    tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME"):
        mean, W = kept("some key", pictures)
    assert mean.shape == (SIZE,) and W.shape == (SIZE, SIZE)


class Tiny(CIFAR10):
    """Made-up images in the place of the photographs."""

    shape = SHAPE
    train_size = 400
    reads = 0

    def files(self, part):
        return []

    def read(self, part):
        Tiny.reads += part == "train"
        n = 400 if part == "train" else 50
        return pictures(n, seed=int(part == "test")), torch.arange(n)


def test_all_parts_are_whitened_as_the_training_images():
    data = Tiny(whiten=True, batch_size=64, val_size=40)
    data.prepare_data()
    whiten = Whitening(*zca(pictures()))
    for loader, part in (
        (data.train_dataloader(), "train"),
        (data.val_dataloader(), "train"),
        (data.test_dataloader(), "test"),
    ):
        images, labels = next(iter(loader))
        expected = whiten(data.read(part)[0][labels])
        assert_close(images, expected, rtol=1e-5, atol=1e-5)


def test_data_modules_share_what_is_kept():
    Tiny(whiten=True, val_size=0).prepare_data()
    Tiny.reads = 0
    Tiny(whiten=True, val_size=0).prepare_data()
    assert Tiny.reads == 0
    data = Tiny(val_size=0)
    images, labels = next(iter(data.train_dataloader()))
    assert_close(images, pictures()[labels] / 255)  # not asked for


@pytest.mark.parametrize("settings", [{"normalize": True}, {"scale": "raw"}])
def test_whitening_goes_with_no_other_scale(settings):
    with pytest.raises(ValueError, match="^whiten must"):
        CIFAR10(whiten=True, **settings)


class Bytes(Images):
    """Every byte once."""

    shape = (1, 1, 1)
    train_size = 256

    def read(self, part):
        return torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(256)


@pytest.mark.parametrize(
    ("kind", "scale", "expected"),
    [
        (Bytes, "unit", lambda x: x / 255),
        (Bytes, "signed", lambda x: (x - 126) / 126),
        (Bytes, "raw", lambda x: x),
        (Digits, "signed", lambda x: (x - 8) / 8),
    ],
)
def test_pixels_can_be_scaled_as_in_the_original_programs(kind, scale, expected):
    data = kind(batch_size=256, val_size=0, scale=scale, order="sequential")
    found, _ = next(iter(data.train_dataloader()))
    wanted = expected(data.read("train")[0][:256].double())
    assert found.dtype == torch.float32
    assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)


def test_images_can_be_standardised_one_by_one():
    data = Digits(batch_size=1500, val_size=0, scale="image", order="sequential")
    found, _ = next(iter(data.train_dataloader()))
    for image, raw in zip(found, data.read("train")[0], strict=True):
        x = raw.double() / 16
        std = max(x.var(correction=0).sqrt().item(), 64**-0.5)
        assert_close(image.double(), (x - x.mean()) / std, rtol=1e-5, atol=1e-6)
    blank, _ = next(
        iter(Bytes(batch_size=9, val_size=0, scale="image").train_dataloader())
    )
    assert (blank == 0).all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"scale": "lua"}, "scale"), ({"scale": "raw", "normalize": True}, "scale")],
)
def test_bad_scales_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        Digits(**settings)


def test_draws_with_replacement_are_independent_for_every_evaluation():
    n, parts, size = 500, 5, 20
    loader = Loader(
        (torch.arange(n),),
        batch_size=size,
        minibatches=parts,
        order="replacement",
        seed=3,
    )
    within = across = 0
    for epoch in range(40):
        loader.set_epoch(epoch)
        for [batch] in loader:
            same = batch == batch[:, None]
            blocks = same.view(parts, size, parts, size).sum((1, 3)).double()
            own = blocks.diagonal().sum()
            within += (own - parts * size).item()  # without each with itself
            across += (blocks.sum() - own).item()
    batches = 40 * len(loader)
    for found, pairs in (
        (within, batches * parts * size * (size - 1)),
        (across, batches * parts * (parts - 1) * size**2),
    ):
        # Ordered pairs agree with the probability 1/n; both orders agree at once
        assert abs(found - pairs / n) < 4 * (2 * pairs / n) ** 0.5


@pytest.mark.slow
def test_whitened_photographs_have_the_unit_covariance():
    folder = os.environ.get("LIGHTNING_ECD_DATA", "")
    if not Path(folder, "cifar-10-batches-py").is_dir():
        pytest.skip("LIGHTNING_ECD_DATA names no folder with cifar-10-batches-py")
    data = CIFAR10(whiten=True, val_size=0, batch_size=1000, order="sequential")
    data.prepare_data()
    total, products = torch.zeros(3072).double(), torch.zeros(3072, 3072).double()
    for images, _ in data.train_dataloader():
        x = images.flatten(1).double()
        total += x.sum(0)
        products.addmm_(x.T, x)
    mean = total / 50000
    covariance = (products - 50000 * mean.outer(mean)) / 49999
    # Variances (s / (s + 1e-5))^2 with s from 0.0066 on; nothing along the constant
    expected = torch.eye(3072).double() - 1 / 3072
    assert mean.abs().max() < 1e-4
    assert_close(covariance, expected, rtol=0, atol=1e-3)
