"""A parser whose errors are one line, and the folders of runs."""

import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, get_args

from pytorch_lightning.cli import LightningArgumentParser

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import REGISTRY

PROGRAM = "lightning-ecd"
#: Where every run writes.
LOGS = Path("logs")


def fail(message: str, code: int = 2) -> NoReturn:
    """Print one line on standard error and exit."""
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
    raise SystemExit(code)


#: Lines on the alternatives to what was meant.
_IDLE = re.compile(
    r"Subtypes|Errors|Given value|.*NoneType|.*Does not validate|Not a valid subclass|"
    r"Subclass types|a class path \(str\)|a dict with(out)? (class_path|parameters)"
)


def one_line(message: str) -> str:
    """Return a parser's message without the alternatives that nobody meant."""
    lines = [line.strip(" -") for line in message.splitlines()]
    lines = [line for line in dict.fromkeys(lines) if line]
    if any("Does not validate against any of the Union" in line for line in lines):
        lines = [
            line
            for line in lines
            if not _IDLE.match(line) or line.startswith("Parser key")
        ]
    text = re.sub(r"\s+", " ", "; ".join(lines)).replace(":; ", ": ")
    text = re.sub(r"Does not validate against any of the Union subtypes;? ?", "", text)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", text)


def whole_numbers_first(parser: LightningArgumentParser) -> None:
    """Read 1 as an integer wherever a fraction is allowed as well.

    One batch is 1, all of them are 1.0. Which type comes first in Lightning's hints is
    up to who imports what before: `typing` keeps one of two equal unions.
    """
    for action in parser._actions:
        kinds = get_args(getattr(action, "_typehint", None))
        if float in kinds and int in kinds:
            order = sorted(kinds, key=lambda kind: kind is not int)
            action._typehint = reduce(or_, order)  # type: ignore[attr-defined]


class Parser(LightningArgumentParser):
    """A parser whose errors are one line that names the key, and exit code 2."""

    #: The arguments being parsed, to name a flag as the user wrote it.
    arguments: Sequence[str] = ()
    #: Whether errors are raised: for callers that go on after them.
    raises: ClassVar[bool] = False

    def __init__(self, *args: Any, **kwargs: Any):
        # Else --trainer.max_epoch would pass for max_epochs.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit, or raise it."""
        if self.raises:
            raise UserError(self._explained(message))
        fail(self._explained(message))

    def _explained(self, message: str) -> str:
        text = one_line(message)
        key = re.search(r"(?:Parser key \"|Option ')([\w.]+)[\"']", text)
        flag = self._flag(key[1]) if key else None
        if key and flag and flag != key[1]:
            text = f"{flag}: {text}"
        if key and key[1].rsplit(".", 1)[-1] == "optimizer" and "import path" in text:
            text += "; registered optimizers: " + ", ".join(REGISTRY)
        unknown = re.search(r"unrecognized arguments: --([\w.]+)", text)
        if unknown:
            known = [name.lstrip("-") for name in self._every_option()]
            close = difflib.get_close_matches(unknown[1], known, 1)
            text += f"; did you mean --{close[0]}?" if close else "; see --help"
        elif "is not accepted" in text and flag:
            part = flag.rsplit(".", 1)[0]
            text += f"; {part}.help CLASS lists what is"
        return text if len(text) <= 500 else text[:497] + "..."

    def _flag(self, key: str) -> str | None:
        names = [word.split("=")[0] for word in self.arguments if word[:2] == "--"]
        matches = [n for n in names if n[2:] == key or n.endswith("." + key)]
        return matches[-1] if matches else None

    def _every_option(self) -> list[str]:
        commands = [a.choices for a in self._actions if isinstance(a.choices, dict)]
        parsers = [self, *(parser for c in commands for parser in c.values())]
        return [option for p in parsers for option in p._option_string_actions]


T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command about an object that files and flags describe.

    Attributes:
        name: Of the command.
        kind: Class of the object; its arguments are the settings.
        configs: Folder of its files.
        about: What the command does.
        default: Name of what is described, unless a file or `--name` gives one.
    """

    name: str
    kind: type[T]
    configs: str
    about: str
    default: str

    def read(self, args: Sequence[str]) -> tuple[dict[str, Any], str, list[Path]]:
        """Return the settings that arguments describe, and their name.

        The third value are the folders of the files, the last file's first: those
        that `resolve` looks into.
        """
        parser = self._parser()
        parser.arguments = args
        parsed = parser.parse_args(list(args))
        files = [Path(str(file)) for file in parsed.get("config") or []]
        name = parsed.get("name") or (files[0].stem if files else self.default)
        settings = json.loads(parser.dump(parsed, format="json", skip_unset=False))
        settings.pop("name", None)
        return settings, str(name), [file.parent for file in reversed(files)]

    def build(self, settings: dict[str, Any]) -> T:
        """Return the object of settings, all of them, as `read` returns them."""
        parser = self._parser()
        parsed = parser.parse_object(deepcopy(settings))  # it changes what it is given
        objects = vars(parser.instantiate_classes(parsed))
        return self.kind(
            **{k: v for k, v in objects.items() if k not in ("config", "name")}
        )

    def _parser(self) -> Parser:
        parser = Parser(prog=f"{PROGRAM} {self.name}", description=self.about)
        parser.add_argument("--config", action="config", help=f"of {self.configs}")
        parser.add_argument(
            "--name",
            type=str | None,
            help="folder of the results; default: the first config's name",
        )
        parser.add_class_arguments(self.kind)
        return parser


def resolve(part: dict[str, Any], key: str, folders: Sequence[Path]) -> None:
    """Make the file that a setting names absolute, if it is one.

    Args:
        part: Settings.
        key: Which of them; None is left alone.
        folders: Where to look, the working folder comes last.
    """
    value = part.get(key)
    if value is None:
        return
    for folder in (*folders, Path()):
        if (folder / value).is_file():
            part[key] = str((folder / value).absolute())
            return


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """Exit with one line on what the user can mend, or after Ctrl-C."""
    try:
        yield
    except (UserError, ValueError, TypeError, OSError) as error:
        fail(one_line(str(error)))
    except KeyboardInterrupt:
        fail("interrupted; nothing was written", code=130)


def version_of(path: Path) -> int:
    """Return the number of the innermost run folder that a path lies in; -1: none."""
    matches = (re.fullmatch(r"version_(\d+)", part) for part in reversed(path.parts))
    return next((int(match[1]) for match in matches if match), -1)


def new_folder(name: str, base: Path = LOGS) -> Path:
    """Make and return the folder of a new run, one version after the latest.

    Of runs that start together, each gets its own: who makes a folder first has it.

    Raises:
        UserError: If it cannot be made.
    """
    found = [version_of(Path(path.name)) for path in (base / name).glob("version_*")]
    version = max(found, default=-1) + 1
    while True:
        folder = base / name / f"version_{version}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            version += 1
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
        else:
            return folder


def drop_empty(folder: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything."""
    with suppress(OSError):  # it holds something
        folder.rmdir()
        folder.parent.rmdir()


def checkpoint_file(given: str, name: str) -> Path:
    """Return the file of a path, or of "last" and "best" of the newest run `name`."""
    if given not in ("last", "best"):
        if not Path(given).is_file():
            raise UserError(f"--ckpt_path: there is no file {given}")
        return Path(given)
    files = (LOGS / name).glob(f"version_*/checkpoints/{given}.ckpt")
    found = sorted(files, key=version_of)
    if not found:
        raise UserError(
            f"--ckpt_path {given}: there is no {given}.ckpt: no run below "
            f"{LOGS / name} has one"
        )
    return found[-1]


def run_of(file: Path) -> Path:
    """Return the folder of the run that wrote a checkpoint."""
    folder = file.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder
