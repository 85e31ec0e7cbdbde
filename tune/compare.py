"""The command `compare`: is this optimizer better, at the same price?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

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
from tune import report, runs
from tune.comparison import Comparison, Contest
from tune.objectives import hushed
from tune.results import frame
from tune.scores import Rules, Scores
from tune.searchers import STUDY
from tune.trial import Record

#: The comparison's settings and machine; its tables.
COMPARISON, TRIALS, CURVES = "comparison.json", "trials.csv", "curves.csv"
_TASKS = "tasks"
#: Columns of both tables; of the points of a curve.
_KEYS = ["task", "optimizer", "study", "trial"]
_POINT = ["evaluations", "seconds", "value"]
_SPENT = ["budget/evaluations", "budget/seconds"]


def run(comparison: Comparison, folder: Path, description: dict[str, Any]) -> None:
    """Run a comparison, or what an interrupted one has left to do; write its tables.

    Args:
        comparison: What to do.
        folder: Where to write.
        description: The comparison as plain data, from which it can be built again.

    Raises:
        UserError: If something cannot work.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    if not (folder / COMPARISON).is_file():
        _begin(comparison, folder, description)
    trials: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    for name, search in comparison.searches.items():
        print(f"task {name}:")
        outcome = runs.run(search, folder / _TASKS / name, strict=False, draw=False)
        table = frame(outcome.records).rename(columns={f"config/{STUDY}": "study"})
        trials.append(table.assign(task=name))
        metric = comparison.tasks[name].metric
        curves += [_curve(name, record, metric) for record in outcome.records]
        pd.concat(trials).to_csv(folder / TRIALS, index=False)
        pd.concat(curves).to_csv(folder / CURVES, index=False)


def _begin(comparison: Comparison, folder: Path, description: dict[str, Any]) -> None:
    """Check every task, so that none is refused after hours; keep all settings."""
    settings = {}
    for name, search in comparison.searches.items():
        try:
            settings[name] = search.settings()
            search.jobs(settings[name])
        except UserError as error:
            raise UserError(f"task {name}: {error}") from error
    for name, own in settings.items():
        (folder / _TASKS / name).mkdir(parents=True, exist_ok=True)
        runs.keep(folder / _TASKS / name / runs.SETTINGS, {"trials": own})
    content = {"settings": description, "machine": report.machine()}
    runs.keep(folder / COMPARISON, content)


def _curve(task: str, record: Record, metric: str) -> pd.DataFrame:
    """Return what a trial has reached at its validations."""
    found = list(Path(record.folder).rglob("metrics.csv"))
    rows = pd.DataFrame(columns=[*_SPENT, metric])
    if found:
        table = pd.read_csv(found[0])
        if {*_SPENT, metric} <= set(table):
            rows = table[[*_SPENT, metric]].dropna(subset=_SPENT)
    rows = rows.set_axis(_POINT, axis=1)
    of = (task, record.arm, record.values[STUDY], record.number)
    return rows.assign(**dict(zip(_KEYS, of, strict=True)))[[*_KEYS, *_POINT]]


def read(folder: Path) -> tuple[Scores, dict[str, Any]]:
    """Return the scores of a stored comparison, and its description.

    Raises:
        UserError: If there is none, or its files are damaged.
    """
    try:
        content = json.loads((folder / COMPARISON).read_text())
        types = {"task": str, "optimizer": str, **dict.fromkeys(_POINT, float)}
        trials, curves = (
            # names such as 1 and None stay what they are
            pd.read_csv(
                folder / file, dtype=types, na_values=["", "nan"], keep_default_na=False
            )
            for file in (TRIALS, CURVES)
        )
        settings = content["settings"]
        tasks = {name: Contest(**task) for name, task in settings["tasks"].items()}
        rules = Rules(
            {name: task.metric for name, task in tasks.items()},
            {name: task.mode for name, task in tasks.items()},
            {name: task.evaluations for name, task in tasks.items()},
            baselines_of(settings),
            settings["share"],
        )
        for name, table, needed in (
            (TRIALS, trials, [*_KEYS, "status", "error"]),
            (CURVES, curves, [*_KEYS, *_POINT]),
        ):
            if missing := set(needed) - set(table):
                raise ValueError(f"{name} has no column {min(missing)}")
        return Scores(trials, curves, rules), content
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise UserError(f"{folder} holds no comparison: {name} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the comparison is damaged: {error}") from error


def baselines_of(settings: dict[str, Any]) -> list[str]:
    """Return the baselines of a comparison's settings."""
    return settings["baselines"] or Comparison.usual_baselines(settings["optimizers"])


COMMAND = Command(
    "compare",
    Comparison,
    "configs/comparison",
    "Compare optimizers on tasks: the same tuning for each, the same price for each "
    "trial. --restore FOLDER goes on with one that was interrupted, --report FOLDER "
    "writes the report of its tables anew.",
    default="comparison",
)
build = COMMAND.build


def described(args: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return the settings that arguments describe, and the comparison's name."""
    settings, name, folders = COMMAND.read(args)
    for task in settings["tasks"].values():
        resolve(task, "experiment", folders)
    for arm in settings["optimizers"].values():
        resolve(arm, "optimizer", folders)
    return settings, name


def _given(args: Sequence[str], flag: str) -> tuple[Path, str | None] | None:
    """Return the folder after a flag, and --address, if the flag is there."""
    if not any(word.split("=")[0] == flag for word in args):
        return None
    parser = Parser(prog=f"{PROGRAM} compare {flag}")
    parser.arguments = args
    parser.add_argument(flag, type=str, required=True, help="of the comparison")
    parser.add_argument("--address", type=str | None, help="of a Ray cluster's head")
    parsed = parser.parse_args(list(args))
    folder = Path(parsed[flag.removeprefix("--")])
    if not (folder / COMPARISON).is_file():
        raise UserError(f"{flag}: {folder} holds no comparison ({COMPARISON})")
    return folder, parsed["address"]


def _former(folder: Path, address: str | None) -> dict[str, Any]:
    """Return the settings of a stored comparison, at another address if given."""
    try:
        settings = json.loads((folder / COMPARISON).read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / COMPARISON} is damaged: {error}") from error
    return {**settings, "address": address or settings.get("address")}


def main(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    folder = None
    try:
        if stored := _given(args, "--report"):
            folder, _ = stored
        else:
            if stored := _given(args, "--restore"):
                folder, address = stored
                settings = _former(folder, address)
                comparison = build(settings)
            else:
                settings, name = described(args)
                comparison = build(settings)
                folder = new_folder(name, Path(settings["storage"]))
            with hushed():
                run(comparison, folder.absolute(), settings)
        scores, content = read(folder)
        report.write(folder, scores, content)
    except (UserError, ValueError, TypeError) as error:
        fail(one_line(str(error)))
    except KeyboardInterrupt:
        begun = folder is not None and (folder / COMPARISON).is_file()
        how = f"go on with\n  {PROGRAM} compare --restore {folder}"
        print(f"interrupted; {how if begun else 'nothing was begun'}")
        raise SystemExit(130) from None
    finally:
        if folder is not None:
            drop_empty(folder)
    report.show(scores)
    print(f"report: {folder}/report.html, {folder}/report.md")
    print(f"to look at the trials: tensorboard --logdir {folder}")
