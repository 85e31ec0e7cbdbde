"""Numbers of run folders, and who gets which."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from lightning_ecd.errors import UserError
from lightning_ecd.parser import checkpoint_file, drop_empty, new_folder, version_of


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("logs/net/version_3", 3),
        ("logs/net/version_12/checkpoints/last.ckpt", 12),
        ("logs/net_version_2/version_0", 0),
        ("logs/version_7/version_1/checkpoints/last.ckpt", 1),
        ("logs/net_version_2/last.ckpt", -1),
        ("logs/net/version_3.bak", -1),
    ],
)
def test_the_number_is_that_of_the_innermost_run_folder(path, version):
    assert version_of(Path(path)) == version


@pytest.mark.parametrize("name", ["net", "net_version_2", "version_5"])
@pytest.mark.parametrize("base", ["logs", "logs/x/version_0"])
def test_new_runs_count_from_zero_whatever_their_name(name, base, tmp_path):
    base = tmp_path / base
    made = [new_folder(name, base) for _ in range(3)]
    assert made == [base / name / f"version_{version}" for version in range(3)]
    (base / name / "version_8").mkdir()
    assert new_folder(name, base).name == "version_9"  # gaps are not filled


def test_the_newest_checkpoint_of_a_name_with_a_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version in range(11):
        folder = Path(f"logs/net_version_2/version_{version}/checkpoints")
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    found = checkpoint_file("last", "net_version_2")
    assert found == Path("logs/net_version_2/version_10/checkpoints/last.ckpt")


def test_who_comes_too_late_takes_the_next_number(tmp_path, monkeypatch):
    """Another run makes the folder between looking and making."""
    mkdir = Path.mkdir

    def late(self, *args, **kwargs):
        if self.name in ("version_0", "version_1"):
            mkdir(self, parents=True)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", late)
    assert new_folder("net", tmp_path).name == "version_2"


def test_runs_that_start_together_get_folders_of_their_own(tmp_path):
    start = Barrier(4)

    def claim(_):
        start.wait()
        return [new_folder("net", tmp_path) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        made = [folder for some in pool.map(claim, range(4)) for folder in some]
    assert len(set(made)) == 80
    assert len(list((tmp_path / "net").iterdir())) == 80


def test_only_an_empty_folder_is_dropped(tmp_path):
    empty, full = new_folder("net", tmp_path), new_folder("net", tmp_path)
    (full / "file").touch()
    for folder in (full, empty):
        drop_empty(folder)
    assert [path.name for path in (tmp_path / "net").iterdir()] == ["version_1"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "logs").touch()
    with pytest.raises(UserError, match="cannot make .*net/version_0: Not a directory"):
        new_folder("net", tmp_path / "logs")
