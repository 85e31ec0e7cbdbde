"""Which settings a class chosen over another one keeps: only its own.

jsonargparse keeps the arguments that two classes share when a later source changes
the class: ``--model.optimizer SGD`` over a BBI experiment would train with BBI's lr.
Here the sources are read in order, and all that came before the last choice of a
class is dropped.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml


def settings_of(key: str, args: Sequence[str]) -> list[str] | None:
    """Return the flags that set `key` from its last choice of a class on.

    Args:
        key: Such as "model.optimizer".
        args: Arguments of a command; --config files among them are read.

    Returns:
        Flags ``--value...`` for a parser that knows the key alone by that name, or
        None if the class was chosen at most once: then nothing can leak.
    """
    choices, flags = 0, list[str]()
    for suffix, value in _sources(key, args):
        if suffix in ("", "class_path") and _chooses(suffix, value):
            choices, flags = choices + 1, []
        if not suffix and isinstance(value, str) and Path(value).is_file():
            value = yaml.safe_load(Path(value).read_text())
        text = value if isinstance(value, str) else json.dumps(value)
        flags.append(f"--value{'.' if suffix else ''}{suffix}={text}")
    return flags if choices > 1 else None


def _chooses(suffix: str, value: Any) -> bool:
    return isinstance(value, str) or "class_path" in value


def _sources(key: str, args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (suffix, value) of every setting at or below `key`, in order."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if not name.startswith("-"):
            continue
        if not equals:  # a flag such as --print_config has no value
            value = "" if following.startswith("--") else following
        if name in ("--config", "-c"):
            yield from _in_file(key, value)
        else:
            suffix = _suffix(key, name.removeprefix("--"))
            if suffix is not None:
                yield suffix, value


def _suffix(key: str, name: str) -> str | None:
    """Return what follows `key` in a flag's name, "init_args" apart."""
    head, _, tail = key.partition(".")
    wanted = [head, tail] if tail else [head]
    parts = name.split(".")
    if len(wanted) == 2 and parts[1:2] == ["init_args"]:
        del parts[1]
    if parts[: len(wanted)] != wanted:
        return None
    return ".".join(parts[len(wanted) :])


def _in_file(key: str, file: str) -> Iterator[tuple[str, Any]]:
    try:
        value: Any = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError):
        return  # the parser says what is wrong with the file
    for part in key.split("."):
        if not isinstance(value, dict):
            return
        if part not in value and isinstance(value.get("init_args"), dict):
            value = value["init_args"]
        value = value.get(part)
    if isinstance(value, str):
        beside = Path(file).parent / value  # parts are named relative to the file
        yield "", str(beside) if beside.is_file() else value
    elif isinstance(value, dict):
        yield "", value
