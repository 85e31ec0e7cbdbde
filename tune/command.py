"""The command `tune`."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_ecd.errors import UserError
from lightning_ecd.parser import (
    PROGRAM,
    Command,
    Parser,
    drop_empty,
    fail,
    new_folder,
    one_line,
    resolve,
)
from tune import runs
from tune.live import shown
from tune.objectives import hushed
from tune.runs import Outcome
from tune.search import Search
from tune.trial import Record

COMMAND = Command(
    "tune",
    Search,
    "configs/search",
    "Search the hyper-parameters of optimizers.",
    default="search",
)
build = COMMAND.build


def read(args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the settings of the search that arguments describe, and its name.

    Files are named relative to the search file, or to the working folder.
    """
    settings, name, folders = COMMAND.read(args)
    resolve(settings, "experiment", folders)
    resolve(settings, "study", folders)
    for arm in (settings.get("optimizers") or {}).values():
        resolve(arm, "optimizer", folders)
    _resolve_below(settings.get("constraint"), folders)
    if settings.get("repeat"):
        resolve(settings["repeat"], "against", folders)
    return settings, name


def _resolve_below(part: Any, folders: Sequence[Path]) -> None:
    """Make every `file` in a constraint's arguments absolute."""
    if isinstance(part, dict):
        resolve(part, "file", folders)
        for value in part.values():
            _resolve_below(value, folders)


def _former(args: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Return the settings of the search that `--restore` names, and its folder.

    Nothing of it can change but the cluster it runs on.
    """
    parser = Parser(
        prog=f"{PROGRAM} tune --restore", description="Go on with a search."
    )
    parser.arguments = args
    parser.add_argument("--restore", type=str, required=True, help="its folder")
    parser.add_argument("--address", type=str | None, help="of a Ray cluster's head")
    parsed = parser.parse_args(list(args))
    folder = Path(parsed.restore).absolute()
    if not (folder / runs.SEARCH).is_file():
        raise UserError(f"--restore: {parsed.restore} holds no search ({runs.SEARCH})")
    try:
        settings = json.loads((folder / runs.SEARCH).read_text())
    except ValueError as error:
        raise UserError(f"restore: {folder / runs.SEARCH} is damaged") from error
    if parsed.address is not None:
        settings["address"] = parsed.address
    return settings, folder


def report(search: Search, outcome: Outcome) -> None:
    """Print the best trials, published ones beside them, and where everything is."""
    table = Table("", search.metric, "hyper-parameters", "trial", "all trials")
    for arm in dict.fromkeys(record.arm for record in outcome.records):
        ends = Counter(r.status for r in outcome.records if r.arm == arm)
        counts = ", ".join(f"{count} {end}" for end, count in ends.items())
        table.add_row(arm, *_cells(outcome.best.get(arm), search.metric), counts)
        if arm in outcome.published:
            cells = _cells(outcome.published[arm], search.metric)
            table.add_row(f"{arm}, published", *cells[:2])
    Console().print(table)
    for arm in outcome.best:
        command = "fit" if search.study is None else "trajectories"
        file = outcome.folder / f"best_{arm}.yaml"
        print(f"best of {arm}: {PROGRAM} {command} --config {file}")
    print(f"results: {outcome.folder}/results.csv")
    print(f"to look at them: tensorboard --logdir {outcome.folder}")


def _cells(record: Record | None, metric: str) -> list[str]:
    if record is None:
        return ["none", "", ""]
    values = ", ".join(f"{key} {shown(v)}" for key, v in record.values.items())
    return [shown(record.metrics.get(metric)), values, str(record.number)]


def main(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    folder = None
    try:
        if any(word.split("=")[0] == "--restore" for word in args):
            settings, folder = _former(args)
            search = build(settings)
        else:
            settings, name = read(args)
            search = build(settings)
            folder = new_folder(name, Path(settings["storage"])).absolute()
        with hushed():
            outcome = runs.run(search, folder, settings)
    except (UserError, ValueError, TypeError) as error:
        fail(one_line(str(error)))
    except KeyboardInterrupt:
        begun = folder is not None and (folder / runs.SETTINGS).is_file()
        how = f"go on with\n  {PROGRAM} tune --restore {folder}"
        print(f"interrupted; {how if begun else 'nothing was begun'}")
        raise SystemExit(130) from None
    finally:
        if folder is not None:
            drop_empty(folder)
    report(search, outcome)
