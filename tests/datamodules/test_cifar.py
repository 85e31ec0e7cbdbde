import ctypes
import gc
import os
import pickle
import sys
import tarfile
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch.nn.functional import pad

from datamodules import CIFAR10, CIFAR100, Compose, RandomFlip, RandomShift
from lightning_ecd.errors import UserError

SIZE = 12  # images in a file


def real(**settings):
    """A data module on genuine files; the test skips where there are none."""
    folder = os.environ.get("LIGHTNING_ECD_DATA", "")
    if not Path(folder, "cifar-10-batches-py").is_dir():
        pytest.skip("LIGHTNING_ECD_DATA names no folder with cifar-10-batches-py")
    return CIFAR10(**settings)


def python2_pickle(fields, at_once=5, first_place=1):
    """Return what Python 2 writes for a dictionary of lists and byte strings."""
    place = iter(range(first_place, first_place + 1000))

    def memo():
        number = next(place)
        return b"q%c" % number if number < 256 else b"r" + number.to_bytes(4, "little")

    def short(text):
        return b"U%c%b" % (len(text), text) + memo()

    out = b"\x80\x02}" + memo() + b"("
    for key, value in fields.items():
        out += short(key.encode())
        if isinstance(value, bytes):
            out += b"T" + len(value).to_bytes(4, "little") + value + memo()
            continue
        out += b"]" + memo()
        for start in range(0, len(value), at_once):
            items = value[start : start + at_once]
            coded = (b"K%c" % i if isinstance(i, int) else short(i) for i in items)
            out += b"(" + b"".join(coded) + b"e"
    return out + b"u."


def batch(key, classes, seed, **settings):
    draws = np.random.default_rng(seed)
    pixels = draws.integers(256, size=(SIZE, 3072), dtype=np.uint8)
    labels = draws.integers(classes, size=SIZE).tolist()
    names = [b"image_%d.png" % i for i in range(SIZE)]
    before = {"filenames": names, "coarse_labels": [1] * SIZE}
    fields = {"batch_label": b"", **before, key: labels, "data": pixels.tobytes()}
    return python2_pickle(fields, **settings), pixels, labels


@pytest.fixture
def small(tmp_path, monkeypatch):
    """CIFAR-10 of 2 x 12 + 12 images in `tmp_path`, genuine by its own checksums."""
    contents = {f"file_{i}": batch("labels", 10, i) for i in range(3)}
    listed = [[name, md5(data).hexdigest()] for name, (data, *_) in contents.items()]
    source = SimpleNamespace(
        base_folder="cifar",
        filename="cifar.tar.gz",
        url="http://127.0.0.1:9/cifar.tar.gz",
        tgz_md5="",
        train_list=listed[:2],
        test_list=listed[2:],
    )
    monkeypatch.setattr(CIFAR10, "source", source)
    monkeypatch.setattr(CIFAR10, "train_size", 2 * SIZE)
    monkeypatch.setattr(CIFAR10, "test_size", SIZE)
    (tmp_path / "cifar").mkdir()
    for name, (data, *_) in contents.items():
        (tmp_path / "cifar" / name).write_bytes(data)
    return SimpleNamespace(folder=tmp_path / "cifar", contents=contents, source=source)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def data(small):
    return CIFAR10(str(small.folder.parent), val_size=0)


def test_the_fake_files_are_pickles():
    content, pixels, labels = batch("labels", 10, 0)
    loaded = pickle.loads(content, encoding="bytes")
    assert loaded[b"labels"] == labels and loaded[b"data"] == pixels.tobytes()


@pytest.mark.parametrize("part", ["train", "test"])
def test_images_and_labels_are_read_file_after_file(small, part):
    images, labels = data(small).read(part)
    files = list(small.contents.values())[: 2 if part == "train" else 3]
    files = files if part == "train" else files[2:]
    expected = np.concatenate([pixels for _, pixels, _ in files])
    assert np.array_equal(images.reshape(-1, 3072).numpy(), expected)
    assert images.dtype == torch.uint8 and images.shape[1:] == CIFAR10.shape
    assert labels.tolist() == [label for _, _, own in files for label in own]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("first_place", [1, 250, 300])
def test_fine_labels_of_cifar100_are_read(tmp_path, monkeypatch, first_place):
    content, pixels, labels = batch("fine_labels", 100, 7, first_place=first_place)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(content)
    source = SimpleNamespace(
        base_folder="cifar-100-python", test_list=[["test", md5(content).hexdigest()]]
    )
    monkeypatch.setattr(CIFAR100, "source", source)
    monkeypatch.setattr(CIFAR100, "test_size", SIZE)
    images, found = CIFAR100(str(tmp_path)).read("test")
    assert found.tolist() == labels
    assert np.array_equal(images.flatten().numpy(), pixels.flatten())


def test_cifar100_knows_the_published_archive():
    assert CIFAR100.source is torchvision.datasets.CIFAR100
    data = CIFAR100("somewhere")
    assert data.folder == Path("somewhere/cifar-100-python") and data.classes == 100
    assert [name for name, _ in data.files("train")] == ["train"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-2000],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: content + b"more",
        lambda content: content[:-5000] + b"?" + content[-4999:],
        lambda content: content.replace(b"labels", b"lobels"),
        lambda content: content[::-1],
    ],
    ids=["truncated", "head", "empty", "longer", "pixel", "key", "noise"],
)
def test_a_damaged_file_is_refused_by_name(small, damage):
    path = small.folder / "file_1"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"file_1 cannot be used .*: delete it"):
        data(small).read("train")


def test_a_missing_file_is_named(small):
    (small.folder / "file_2").unlink()
    with pytest.raises(UserError, match="file_2 is missing.*LIGHTNING_ECD_DATA"):
        data(small).read("test")


def test_genuine_files_without_labels_are_refused(small, monkeypatch):
    monkeypatch.setattr(CIFAR10, "key", "fine_labels")
    with pytest.raises(UserError, match="0 fine_labels for 12 images"):
        data(small).read("test")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_a_file_is_executed(small, tmp_path):
    content = pickle.dumps(Hostile(tmp_path / "executed"))
    (small.folder / "file_2").write_bytes(content)
    small.source.test_list[0][1] = md5(content).hexdigest()
    with pytest.raises(UserError, match="file_2"):
        data(small).read("test")
    assert not (tmp_path / "executed").exists()


def packed(small, place):
    """Move the files into the archive, which becomes genuine by its checksum."""
    archive = place / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(small.folder.iterdir()):
            tar.add(file, f"cifar/{file.name}")
            file.unlink()
    small.source.tgz_md5 = md5(archive.read_bytes()).hexdigest()
    return archive


def test_an_archive_is_unpacked(small, tmp_path):
    expected = data(small).read("train")
    packed(small, tmp_path)
    small.folder.rmdir()
    data(small).prepare_data()
    assert sorted(f.name for f in small.folder.iterdir()) == list(small.contents)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["cifar", "cifar.tar.gz"]
    for one, other in zip(data(small).read("train"), expected, strict=True):
        assert torch.equal(one, other)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_the_archive_is_downloaded_and_checked(small, tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    packed(small, web)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=web)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        small.source.url = f"http://127.0.0.1:{server.server_port}/cifar.tar.gz"
        data(small).prepare_data()
        server.shutdown()
    assert len(data(small).read("train")[1]) == 2 * SIZE
    (small.folder / "file_0").unlink()
    small.source.tgz_md5 = "0" * 32
    with pytest.raises(UserError, match="cifar.tar.gz is damaged.*delete it"):
        data(small).prepare_data()


def test_without_the_mirror_the_missing_archive_is_named(small):
    (small.folder / "file_0").unlink()
    with pytest.raises(UserError, match="cifar.tar.gz is missing.*127.0.0.1"):
        data(small).prepare_data()


def test_nothing_is_written_where_all_files_are(small):
    before = sorted(small.folder.parent.rglob("*"))
    data(small).prepare_data()
    data(small).setup()
    assert sorted(small.folder.parent.rglob("*")) == before


def test_samples_equal_torchvisions():
    images, labels = real().read("test")
    theirs = torchvision.datasets.CIFAR10(os.environ["LIGHTNING_ECD_DATA"], train=False)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert labels.tolist() == theirs.targets


def test_constants_and_labels_are_those_of_the_training_set():
    images, labels = real().read("train")
    assert labels.bincount().tolist() == [5000] * 10
    values = torch.arange(256, dtype=torch.float64) / 255
    for colour in range(3):
        counts = images[:, colour].flatten().bincount(minlength=256) / (50000 * 1024.0)
        mean = (counts * values).sum().item()
        std = (counts * (values - mean) ** 2).sum().sqrt().item()
        assert CIFAR10.mean[colour] == pytest.approx(mean, abs=5.1e-5)
        assert CIFAR10.std[colour] == pytest.approx(std, abs=5.1e-5)


def status(key):
    """Return an entry of this process's memory table in bytes."""
    with open("/proc/self/status") as file:
        entry = next(line for line in file if line.startswith(key))
    return int(entry.split()[1]) * 1024


def peak(function):
    """Return by how many bytes a call raises the peak of this process's memory."""
    gc.collect()  # what earlier tests left, used again, would hide some
    getattr(ctypes.CDLL(None), "malloc_trim", lambda rest: None)(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_reading_takes_little_more_memory_than_the_images():
    data = real()
    data.read("test")  # allocators and regular expressions
    size = 50000 * 3 * 32 * 32
    assert peak(lambda: data.read("train")) < 1.3 * size
    assert peak(lambda: data.read("train")[0].clone()) > 1.9 * size


def test_published_constants_can_be_chosen():
    parser = ArgumentParser()
    parser.add_class_arguments(CIFAR10, "data")
    args = ["--data.normalize=true", "--data.std=[0.2023, 0.1994, 0.2010]"]
    config = parser.parse_args(args)
    chosen = getattr(parser, "instantiate", parser.instantiate_classes)(config).data
    assert chosen.std == (0.2023, 0.1994, 0.2010) and chosen.mean == CIFAR10.mean
    pixels = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    expected = [(1 - m) / s for m, s in zip(chosen.mean, chosen.std, strict=True)]
    assert chosen._floats()(pixels).flatten().tolist() == pytest.approx(expected)


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match="std must be above 0"):
        CIFAR10(std=(0.2, 0.0, 0.2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crop_and_flip_equal_one_image_at_a_time(layout):
    images = torch.randint(256, (20, 3, 8, 7), dtype=torch.uint8)
    images = images.contiguous(memory_format=layout)
    both = Compose([RandomShift(4), RandomFlip()])
    found = both(images, torch.Generator().manual_seed(5))
    draws = torch.Generator().manual_seed(5)
    corners = torch.randint(9, (2, 20), generator=draws).T.tolist()
    mirrored = torch.rand(20, generator=draws) < 0.5
    for i, (top, left) in enumerate(corners):
        one = pad(images[i], (4, 4, 4, 4))[:, top : top + 8, left : left + 7]
        assert torch.equal(found[i], one.flip(2) if mirrored[i] else one)
