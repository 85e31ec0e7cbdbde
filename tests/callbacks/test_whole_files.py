"""A checkpoint is the old or the new one, whole; reading one runs nothing."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_ecd.callbacks import WholeFiles
from lightning_ecd.errors import UserError


def content(value, size=50_000):
    return {"state_dict": {"x": torch.full((size,), value)}}


OLD, NEW = content(1.0), content(2.0)


def saved(path):
    WholeFiles().save_checkpoint(OLD, path)
    return path


def assert_old(path):
    assert torch.equal(
        WholeFiles().load_checkpoint(path)["state_dict"]["x"], OLD["state_dict"]["x"]
    )
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_comes_back(tmp_path):
    path = saved(tmp_path / "new" / "folder" / "a.ckpt")
    assert_old(path)


def test_a_disk_that_runs_full_leaves_the_old_file(tmp_path, monkeypatch):
    path, save = saved(tmp_path / "a.ckpt"), torch.save

    def half(checkpoint, file):
        save(checkpoint, file)
        file.truncate(1000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=rf"{path}.*untouched.*No space left") as caught:
        WholeFiles().save_checkpoint(NEW, path)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert_old(path)


def test_a_limit_on_the_size_of_files_leaves_the_old_file(tmp_path):
    path = saved(tmp_path / "a.ckpt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=rf"{path}.*untouched.*File too large"):
            WholeFiles().save_checkpoint(NEW, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_old(path)


def test_an_interrupt_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.ckpt")

    def interrupted(checkpoint, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WholeFiles().save_checkpoint(NEW, path)
    monkeypatch.undo()
    assert_old(path)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file" / "a.ckpt")):
        WholeFiles().save_checkpoint(NEW, tmp_path / "file" / "a.ckpt")


# -- kill -9 -----------------------------------------------------------------------

#: Six times: a process that writes without pause is killed after a while. One
#: interpreter, because it takes seconds to start.
KILLED = """
import os, random, signal, sys, time
import torch
from lightning_ecd.callbacks import WholeFiles

torch.set_num_threads(1)  # a forked child must not wait for other threads
path, io, draws = sys.argv[1], WholeFiles(), random.Random(0)

def save(value):
    io.save_checkpoint({"state_dict": {"x": torch.full((300_000,), value)}}, path)

save(0.0)
for trial in range(6):
    child = os.fork()
    if child == 0:
        for count in range(1, 10**6):
            save(float(count))
    time.sleep(0.1 + 0.2 * draws.random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    x = io.load_checkpoint(path)["state_dict"]["x"]
    print(len(x), int(x.min()), int(x.max()))
"""


def test_kill_9_while_writing_leaves_the_old_or_the_new_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "a.ckpt")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(rows) == 6
    assert all(size == 300_000 and low == high for size, low, high in rows)
    assert len({low for _, low, _ in rows}) > 1  # they did write


# -- reading -----------------------------------------------------------------------


def refused(path):
    with pytest.raises(UserError) as caught:
        WholeFiles().load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path):
    assert "there is no checkpoint" in refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_a_truncated_file(share, tmp_path):
    path = saved(tmp_path / "a.ckpt")
    os.truncate(path, int(share * path.stat().st_size))
    assert "truncated" in refused(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00", b"PK\x03\x04"])
def test_a_file_of_something_else(content, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    assert "corrupted" in refused(path)


@pytest.mark.parametrize("other", [torch.ones(3), {"weight": torch.ones(3)}, [1]])
def test_a_file_of_bare_weights(other, tmp_path):
    torch.save(other, tmp_path / "a.ckpt")
    assert "not a checkpoint" in refused(tmp_path / "a.ckpt")


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_hostile_file_is_refused_and_not_executed(new_format, tmp_path):
    path, target = tmp_path / "a.ckpt", tmp_path / "touched"
    torch.save(
        {"state_dict": {}, "x": Hostile(target)},
        path,
        _use_new_zipfile_serialization=new_format,
    )
    assert "plain data" in refused(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # it would have
    assert target.exists()


def test_weights_that_a_spawned_process_hands_back_are_read(tmp_path):
    weights = {"w": torch.ones(2)}
    for name in (".temp.ckpt", "other.ckpt"):
        WholeFiles().save_checkpoint(weights, tmp_path / name)
    assert torch.equal(
        WholeFiles().load_checkpoint(tmp_path / ".temp.ckpt")["w"], weights["w"]
    )
    with pytest.raises(UserError, match="is not a checkpoint of a Trainer"):
        WholeFiles().load_checkpoint(tmp_path / "other.ckpt")
