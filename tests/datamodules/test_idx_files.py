import gzip
import hashlib
import os
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

import datamodules
import datamodules.idx
from datamodules.idx import IdxFile
from lightning_ecd.errors import UserError

IMAGES = torch.randint(256, (6, 28, 28), dtype=torch.uint8)
LABELS = torch.arange(6, dtype=torch.uint8)


def packed_idx(data):
    header = bytes([0, 0, 8, data.dim()])
    header += b"".join(size.to_bytes(4, "big") for size in data.shape)
    return header + data.numpy().tobytes()


def contents():
    """The four files of a data set of six images, unpacked."""
    return {
        f"{prefix}-{kind}-idx{data.dim()}-ubyte": packed_idx(data)
        for prefix in ("train", "t10k")
        for kind, data in (("images", IMAGES), ("labels", LABELS))
    }


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def gz(content):
    return gzip.compress(content, mtime=0)


class Tiny(datamodules.MNIST):
    """MNIST with six images in either part."""

    train_size = 6
    source = SimpleNamespace(
        __name__="MNIST",
        mirrors=["http://127.0.0.1:9/"],
        resources=[(f"{n}.gz", md5(gz(c))) for n, c in contents().items()],
    )

    @property
    def files(self):
        shapes = {3: (6, 28, 28), 1: (6,)}
        keys = ("train images", "train labels", "test images", "test labels")
        return {
            key: IdxFile(name, shapes[content[3]], md5(content))
            for key, (name, content) in zip(keys, contents().items(), strict=True)
        }


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LIGHTNING_ECD_DATA", raising=False)


@pytest.fixture(params=[".gz", ""], ids=["packed", "unpacked"])
def folder(request, tmp_path):
    """A data folder; the parameter tells which files it has."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents().items():
        packed = gz(content) if request.param else content
        (raw / f"{name}{request.param}").write_bytes(packed)
    return tmp_path


def tiny(folder, **settings):
    sizes = {"batch_size": 2, "val_size": 2, "eval_batch_size": 2}
    return Tiny(str(folder), **(sizes | settings))


def listing(folder):
    return {path: path.lstat() for path in [folder, *folder.rglob("*")]}


def stamps(folder):
    return {p: (s.st_mtime_ns, s.st_size) for p, s in listing(folder).items()}


def damaged(folder, change):
    """Change the training images' file and return its path."""
    (path,) = (folder / "MNIST" / "raw").glob("train-images*")
    content = path.read_bytes()
    path.write_bytes(change(content))
    return path


def test_packed_and_unpacked_files_are_read(folder):
    data = tiny(folder)
    images, labels = data.read("train")
    assert torch.equal(images, IMAGES[:, None]) and images.dtype == torch.uint8
    assert torch.equal(labels, LABELS.long()) and labels.dtype == torch.int64


def test_a_differently_packed_file_is_as_good(folder):
    (raw,) = folder.glob("*/raw")
    for path in raw.glob("*.gz"):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    assert torch.equal(tiny(folder).read("test")[0], IMAGES[:, None])


def test_nothing_is_written_when_no_file_is_missing(folder):
    before = stamps(folder)
    data = tiny(folder)
    data.prepare_data()
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert stamps(folder) == before


def test_files_are_read_once(folder):
    data = tiny(folder)
    data.setup("fit")
    damaged(folder, lambda content: b"")
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"<html>not found</html>",
        lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    ],
    ids=["empty", "half", "one byte short", "another format", "one bit changed"],
)
def test_a_damaged_file_is_named_with_the_remedy(folder, change):
    path = damaged(folder, change)
    data = tiny(folder)
    data.prepare_data()
    with pytest.raises(UserError, match="LIGHTNING_ECD_DATA") as caught:
        data.setup("fit")
    message = str(caught.value)
    assert str(path) in message and "delete it" in message and "\n" not in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (packed_idx(IMAGES[:5]), "shape"),
        (packed_idx(IMAGES.view(6, 784)), "shape"),
        (packed_idx(IMAGES) + b"0", "goes on after"),
        (packed_idx(IMAGES)[:-1], "ends after"),
        (packed_idx(IMAGES.flip(0)), "md5"),
    ],
)
def test_wrong_contents_are_refused_with_the_reason(folder, content, reason):
    damaged(folder, lambda old: gz(content) if old[:2] == b"\x1f\x8b" else content)
    with pytest.raises(UserError, match=reason):
        tiny(folder).setup("fit")


def test_the_environment_overrides_the_default_folder_only(folder, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ECD_DATA", str(folder))
    assert torch.equal(Tiny(val_size=2).read("train")[1], LABELS.long())
    with pytest.raises(UserError, match="elsewhere"):
        tiny("elsewhere").read("train")


def test_a_missing_file_is_named_when_it_is_read(tmp_path):
    with pytest.raises(UserError, match="LIGHTNING_ECD_DATA") as caught:
        tiny(tmp_path).setup("fit")
    expected = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    assert str(expected) in str(caught.value)


def test_offline_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="LIGHTNING_ECD_DATA") as caught:
        tiny(tmp_path).prepare_data()
    message = str(caught.value)
    expected = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    assert str(expected) in message and "\n" not in message
    assert not list(expected.parent.iterdir()), "nothing half-done may stay"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="not writable") as caught:
        tiny(tmp_path / "file").prepare_data()
    assert str(tmp_path / "file" / "MNIST" / "raw") in str(caught.value)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on this machine; returns the folder it serves."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    served = tmp_path / "served"
    served.mkdir()
    handler = partial(Handler, directory=str(served))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(Tiny.source, "mirrors", ["http://127.0.0.1:9/", address])
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_missing_files_are_downloaded_and_others_left_alone(mirror, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents().items():
        (mirror / f"{name}.gz").write_bytes(gz(content))
    there = next(iter(contents()))
    (raw / there).write_bytes(contents()[there])
    data = tiny(tmp_path / "data")
    data.prepare_data()
    data.setup()
    expected = {there, *(f"{name}.gz" for name in contents() if name != there)}
    assert {path.name for path in raw.iterdir()} == expected


def test_a_download_with_the_wrong_checksum_is_not_kept(mirror, tmp_path):
    for name, content in contents().items():
        (mirror / f"{name}.gz").write_bytes(gz(content)[:-1] + b"?")
    with pytest.raises(UserError, match="corrupted"):
        tiny(tmp_path / "data").prepare_data()
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


MEASURE = """
import importlib.util, re, sys
from pathlib import Path
import torch
spec = importlib.util.spec_from_file_location("idx", sys.argv[1])
idx = importlib.util.module_from_spec(spec)
spec.loader.exec_module(idx)
torch.randperm(10).sort()
# not ru_maxrss: a child inherits its parent's
def memory(name):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(name + r":\\s*(\\d+) kB", status)[1])
before = memory("VmRSS")
shape = (40000, 28, 28)
data = idx.IdxFile("big", shape, sys.argv[3]).read(Path(sys.argv[2]))
order = torch.randperm(len(data))
split = order[5000:].sort()[0], order[:5000].sort()[0]
print((memory("VmHWM") - before) / data.numel())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_reading_needs_little_more_memory_than_the_images(tmp_path):
    pattern = torch.arange(256, dtype=torch.uint8).repeat(40000 * 784 // 256)
    content = packed_idx(pattern.view(40000, 28, 28))
    (tmp_path / "big.gz").write_bytes(gzip.compress(content, 1))
    arguments = [datamodules.idx.__file__, str(tmp_path), md5(content)]
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert 1 <= float(out.stdout) <= 1.3
