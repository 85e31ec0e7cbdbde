"""Building the C kernels: once, whole, silently, never required."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_ecd.flat
from lightning_ecd.kernels import Compiled, Eager, body_of
from lightning_ecd.kernels import build as build_module
from lightning_ecd.kernels.build import library
from tests.kernels.bodies import COMPILER, DTYPES, needs_compiler


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forget the library of this process; build into an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    library.cache_clear()
    yield tmp_path / "lightning_ecd"
    library.cache_clear()


def works(built):
    q = torch.ones(1030)
    return Compiled(built, torch.float32).square(q) == 1030


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


@needs_compiler
def test_a_body_is_chosen_by_type_and_place(fresh, monkeypatch):
    for dtype in DTYPES:
        assert isinstance(body_of(torch.empty(3, dtype=dtype)), Compiled)
    for dtype in (torch.bfloat16, torch.float16):
        assert type(body_of(torch.empty(3, dtype=dtype))) is Eager
    monkeypatch.setattr(lightning_ecd.flat, "on_host", lambda v: False)
    assert type(body_of(torch.empty(3))) is Eager


def test_the_environment_switches_to_plain_torch(monkeypatch):
    monkeypatch.setenv("LIGHTNING_ECD_KERNELS", "eager")
    assert type(body_of(torch.empty(3))) is Eager
    monkeypatch.setenv("LIGHTNING_ECD_KERNELS", "fast")
    with pytest.raises(ValueError, match="LIGHTNING_ECD_KERNELS must be 'eager'"):
        body_of(torch.empty(3))


@pytest.mark.parametrize(
    "cc", ["/bin/false", "/no/such/compiler", "gcc; touch {marker}", "'gcc", ""]
)
def test_a_failed_build_falls_back_with_one_debug_record(
    cc, fresh, monkeypatch, caplog, tmp_path
):
    marker = tmp_path / "marker"
    monkeypatch.setenv("CC", cc.format(marker=marker))
    if not cc:
        monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.DEBUG, "lightning_ecd.kernels"):
        for _ in range(3):
            assert type(body_of(torch.empty(3))) is Eager
    assert [r.levelname for r in caplog.records] == ["DEBUG"]
    assert "plain torch does the work" in caplog.text
    assert not marker.exists()  # no shell read the variable
    assert not list(tmp_path.glob("**/*.so"))


@needs_compiler
def test_the_compiler_runs_once(fresh, monkeypatch):
    assert works(library())
    assert len(list(fresh.iterdir())) == 1
    library.cache_clear()

    def refuse(*args):
        raise AssertionError("built again")

    monkeypatch.setattr(build_module, "_built", refuse)
    assert works(library())


@needs_compiler
@pytest.mark.parametrize("change", ["source", "compiler", "flags", "processor"])
def test_a_change_of_what_it_was_built_from_builds_anew(
    change, fresh, monkeypatch, tmp_path
):
    assert works(library())
    library.cache_clear()
    if change == "source":
        for name in ("passes.c", "bases.c", "draws.h"):
            text = (build_module._FOLDER / name).read_text()
            new = "/* new */\n" if name == "draws.h" else ""
            (tmp_path / name).write_text(text + new)
        monkeypatch.setattr(build_module, "_FOLDER", tmp_path)
    elif change == "compiler":
        text = f'[ "$1" = --version ] && echo 99 && exit\nexec {COMPILER} "$@"\n'
        monkeypatch.setenv("CC", script(tmp_path / "cc", text))
    elif change == "flags":
        monkeypatch.setattr(build_module, "_FLAGS", [*build_module._FLAGS, "-g0"])
    else:
        monkeypatch.setattr(build_module, "_processor", lambda: "another")
    assert works(library())
    keys = {file.name.split("-")[1] for file in fresh.iterdir()}
    assert len(keys) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_file_is_built_anew(damage, fresh, tmp_path, monkeypatch):
    assert works(library())
    (good,) = fresh.iterdir()
    content = good.read_bytes()
    # elsewhere: the file of a running process must not be written to
    other = tmp_path / "other" / "lightning_ecd"
    other.mkdir(parents=True, mode=0o700)
    other.chmod(0o700)
    bad = {
        "truncated": content[: len(content) // 2],
        "changed": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "empty": b"",
    }[damage]
    (other / good.name).write_bytes(bad)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    library.cache_clear()
    assert works(library())
    (rebuilt,) = other.iterdir()
    assert rebuilt.read_bytes() != bad


@needs_compiler
def test_a_folder_that_cannot_be_written_is_read(fresh, monkeypatch):
    assert works(library())
    library.cache_clear()

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(build_module, "_write_whole", refuse)
    assert works(library())
    (kept,) = fresh.iterdir()
    kept.unlink()
    library.cache_clear()
    assert works(library())  # from a temporary folder
    assert not list(fresh.iterdir())


@needs_compiler
def test_without_a_cache_folder_the_library_is_temporary(fresh, monkeypatch, tmp_path):
    occupied = tmp_path / "file"
    occupied.touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert works(library())
    assert not list(scratch.iterdir())


@needs_compiler
def test_a_folder_that_others_can_write_is_not_trusted(fresh):
    fresh.mkdir()
    fresh.chmod(0o777)
    assert works(library())
    assert not list(fresh.iterdir())


@needs_compiler
def test_a_compiler_without_native_tuning_will_do(fresh, monkeypatch, tmp_path):
    text = f'case "$*" in *native*) exit 1;; esac\nexec {COMPILER} "$@"\n'
    monkeypatch.setenv("CC", script(tmp_path / "cc", text))
    assert works(library())


@needs_compiler
def test_processes_that_build_at_once_leave_one_whole_library(fresh):
    # the file alone, without torch, so that they really meet
    code = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('build', sys.argv[1])\n"
        "build = u.module_from_spec(spec); spec.loader.exec_module(build)\n"
        "assert build.library()['square_float']\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, build_module.__file__]
    several = [subprocess.Popen(command, env=os.environ) for _ in range(3)]
    assert [one.wait(60) for one in several] == [0, 0, 0]
    names = [Path(file).name for file in fresh.iterdir()]
    assert names and all(name.startswith("passes-") for name in names)
    assert len({name.split("-")[1] for name in names}) == 1
    library.cache_clear()
    assert works(library())
