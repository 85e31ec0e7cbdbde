"""Builds `passes.c` and `bases.c` and loads them.

The library lies in the user's cache folder, under a name made of what it was built
from (source, compiler, flags, processor) and of its own bytes: a stale or damaged
file is never loaded. It is written beside its place and then moved there, so any
number of processes may build at once.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_log = logging.getLogger("lightning_ecd.kernels")
_FOLDER = Path(__file__).parent
_SOURCES, _HEADER = ("passes.c", "bases.c"), "draws.h"
_COMPILERS = ("gcc", "clang", "cc")
#: No -ffast-math: what is not finite must stay so.
_FLAGS = [
    *("-O3", "-shared", "-fPIC", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
#: The processor's own instructions first; not every compiler knows the word.
_TUNINGS: tuple[list[str], ...] = (["-march=native"], [])
#: Lines of /proc/cpuinfo that tell processors apart.
_PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features", "isa")
_SECONDS = 60


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Return the functions; None, and one debug record, where they cannot be had."""
    try:
        return _load(_compiler(), _cache())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.debug("no compiled kernels, plain torch does the work: %s", reason)
        return None


def _load(compiler: list[str], cache: Path | None) -> ctypes.CDLL:
    """Return the library, from the cache or newly built."""
    sources = [(_FOLDER / name).read_text() for name in (*_SOURCES, _HEADER)]
    identity = [*sources, _output([*compiler, "--version"]), _processor()]
    for tuning in _TUNINGS:
        command = [*compiler, *_FLAGS, *tuning]
        key = _digest("\0".join([*identity, *command]).encode())
        if found := cache and _found(cache, key):
            return found
        try:
            return _built(command, key, cache)
        except subprocess.CalledProcessError:
            if tuning is _TUNINGS[-1]:
                raise
    raise AssertionError("unreachable")


def _found(cache: Path, key: str) -> ctypes.CDLL | None:
    """Return a whole library of this key; remove damaged ones."""
    for file in sorted(cache.glob(f"passes-{key}-*.so")):
        with suppress(OSError):
            if file.stem.endswith(_digest(file.read_bytes())):
                return ctypes.CDLL(str(file))
            file.unlink()
    return None


def _built(command: list[str], key: str, cache: Path | None) -> ctypes.CDLL:
    """Compile, keep the result in the cache where that can be written, and load."""
    with tempfile.TemporaryDirectory(prefix="lightning_ecd-") as scratch:
        made = Path(scratch, "passes.so")
        sources = [str(_FOLDER / name) for name in _SOURCES]
        _output([*command, *sources, "-o", str(made), "-lm"])
        content = made.read_bytes()
        if cache:
            kept = cache / f"passes-{key}-{_digest(content)}.so"
            with suppress(OSError):
                _write_whole(kept, content)
                return ctypes.CDLL(str(kept))
        return ctypes.CDLL(str(made))  # stays mapped when the folder goes


def _write_whole(file: Path, content: bytes) -> None:
    """Write so that nobody ever sees a part of it."""
    handle, beside = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".so")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(beside, file)
    except OSError:
        os.unlink(beside)
        raise


def _cache() -> Path | None:
    """Return the user's cache folder, None unless nobody else can write there."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base, "lightning_ecd")
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        status = folder.stat()
    except OSError:
        return None
    ours = status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022
    return folder if ours else None


def _compiler() -> list[str]:
    """Return the command of $CC, or of the first C compiler there is."""
    if os.name != "posix":
        raise OSError("building needs a POSIX system")
    if chosen := shlex.split(os.environ.get("CC", "")):
        return chosen
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise OSError("no C compiler found: neither $CC nor " + ", ".join(_COMPILERS))


def _output(command: list[str]) -> str:
    """Run a program, without a shell, and return what it printed."""
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=_SECONDS
    )
    return done.stdout


def _processor() -> str:
    """Return what tells this processor from others."""
    lines = {platform.machine(), platform.processor()}
    with suppress(OSError), open("/proc/cpuinfo") as info:
        lines |= {line.strip() for line in info if line.startswith(_PROCESSOR)}
    return "\n".join(sorted(lines))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]
