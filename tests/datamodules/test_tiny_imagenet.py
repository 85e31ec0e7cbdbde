import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import TinyImageNet
from lightning_ecd.errors import UserError

NAMES = ("n02", "n01")  # wnids.txt is not sorted
SHADES = {"n01": 40, "n02": 200}


class Tiny(TinyImageNet):
    """Two kinds, three training images of each, three test images."""

    train_size = 6
    test_size = 3


def write(path, colours, size=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), colours, dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=100)


@pytest.fixture
def tree(tmp_path):
    """The layout of the published archive."""
    root = tmp_path / "tiny-imagenet-200"
    for name, shade in SHADES.items():
        folder = root / "train" / name
        for i in range(3):
            write(folder / "images" / f"{name}_{i}.JPEG", (shade, 10 * i, 90))
        (folder / f"{name}_boxes.txt").write_text("boxes\n")
    (root / "wnids.txt").write_text("\n".join(NAMES) + "\n")
    lines = []
    for i, name in enumerate(("n01", "n02", "n01")):
        write(root / "val" / "images" / f"val_{i}.JPEG", (SHADES[name], 0, 0))
        lines.append(f"val_{i}.JPEG\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def data(tree):
    return Tiny(str(tree.parent), val_size=0, batch_size=2)


def test_labels_follow_the_list_of_names(tree):
    images, labels = data(tree).read("train")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and labels.dtype == torch.int64
    assert images.shape == (6, 3, 64, 64) and images.dtype == torch.uint8
    expected = [(SHADES[name], 10 * i, 90) for name in NAMES for i in range(3)]
    middle = images[:, :, 32, 32].int()
    assert (middle - torch.tensor(expected)).abs().max() <= 4  # JPEG


def test_the_annotated_part_is_the_test_set(tree):
    images, labels = data(tree).read("test")
    assert labels.tolist() == [1, 0, 1]
    red = images[:, 0, 32, 32].int()
    assert (red - torch.tensor([40, 200, 40])).abs().max() <= 4


def test_grey_images_become_coloured_ones(tree):
    grey = Image.fromarray(np.full((64, 64), 120, dtype=np.uint8))
    grey.save(tree / "val" / "images" / "val_1.JPEG")
    images, _ = data(tree).read("test")
    assert (images[1].int() - 120).abs().max() <= 2


def test_batches_are_normalised(tree):
    tiny = Tiny(str(tree.parent), val_size=0, batch_size=6, normalize=True)
    images, labels = next(iter(tiny.train_dataloader()))
    means = images[labels == 1].mean((0, 2, 3))
    expected = [40 / 255 - 0.480, 10 / 255 - 0.448, 90 / 255 - 0.397]
    expected = torch.tensor(expected) / torch.tensor([0.276, 0.269, 0.282])
    torch.testing.assert_close(means, expected, atol=0.05, rtol=0)


def broken_file(tree):
    path = tree / "train" / "n01" / "images" / "n01_1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    return "n01_1.JPEG"


def no_image(tree):
    (tree / "val" / "images" / "val_2.JPEG").write_bytes(b"nothing")
    return "val_2.JPEG"


def large_image(tree):
    write(tree / "val" / "images" / "val_0.JPEG", (1, 2, 3), size=65)
    return r"val_0.JPEG has \(3, 65, 65\) pixels"


def fewer(tree):
    (tree / "train" / "n02" / "images" / "n02_0.JPEG").unlink()
    return "5 of 6 images"


def no_list(tree):
    (tree / "wnids.txt").unlink()
    return "wnids.txt"


def unknown_name(tree):
    (tree / "wnids.txt").write_text("n02\n")
    return "n01"


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (broken_file, "train"),
        (no_image, "test"),
        (large_image, "test"),
        (fewer, "train"),
        (no_list, "test"),
        (unknown_name, "test"),
    ],
)
def test_damage_is_named_with_its_remedy(tree, damage, part):
    named = damage(tree)
    with pytest.raises(UserError, match=named) as caught:
        data(tree).read(part)
    assert "LIGHTNING_ECD_DATA" in str(caught.value)
