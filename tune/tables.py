"""Tables of published results beside ours: the command `table`.

A file of configs/table lists rows; each names a study or an experiment, what to read
from it, and the published number. What several rows share is run once. The smoke budget
cuts every run to what shows that it works: it judges nothing.
"""

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.table import Table as RichTable

from lightning_ecd.errors import Diverged, UserError
from lightning_ecd.parser import PROGRAM, Parser, fail, new_folder
from tune.results import markdown
from tune.sources import SOURCES, Numbers, interrupted, kind_of, read_yaml
from tune.statistics import mean_and_error

Rule = Literal["statistical", "relative", "at_most", "at_least"]
Budget = Literal["smoke", "full"]


@dataclass(frozen=True)
class Row:
    """One published number and how to measure it.

    Attributes:
        name: What the row shows.
        metric: Which number to read; of trajectories their ``optimizer/metric``.
        published: The paper's number.
        study: A file of configs/study, relative to the table's; or
        experiment: a file of configs/experiment.
        arguments: Further flags; ``{seed}`` stands for the seed.
        seeds: One run for each.
        smoke: Flags after these that cut the row to seconds; () if it takes no longer;
            None: it cannot be cut. A cut row has the first seed alone.
        error: Standard error of the published number, 0 if unknown.
        rule: "statistical": equal within two standard errors of the difference;
            "relative": within `tolerance`; "at_most", "at_least".
        tolerance: Relative, for "relative"; absolute slack for the others.
        error_metric: Where one run tells the standard error of its `metric`.
        note: Why it deviates, or under which reservation it holds.
    """

    name: str
    metric: str
    published: float
    study: str | None = None
    experiment: str | None = None
    arguments: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    smoke: tuple[str, ...] | None = None
    error: float = 0.0
    rule: Rule = "statistical"
    tolerance: float = 0.0
    error_metric: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.study is None) == (self.experiment is None):
            raise ValueError(f"{self.name}: name either a study or an experiment")
        if self.rule not in get_args(Rule):
            allowed = ", ".join(get_args(Rule))
            raise ValueError(
                f"{self.name}: rule must be one of {allowed}, got {self.rule!r}"
            )
        for key in ("arguments", "seeds", "smoke"):
            if not isinstance(getattr(self, key), tuple | None):
                raise ValueError(f"{self.name}: {key} must be a list")
        if not self.seeds:
            raise ValueError(f"{self.name}: seeds must name at least one")

    @property
    def file(self) -> str:
        """The study or experiment."""
        return str(self.study or self.experiment)

    def cut(self) -> "Row":
        """Return the row as the smoke budget runs it."""
        if self.smoke is None:
            raise UserError(
                f"{self.name}: has no key smoke, the flags that cut it ([]: none); "
                "--rows chooses others"
            )
        arguments = (*self.arguments, *self.smoke)
        return replace(self, arguments=arguments, seeds=self.seeds[:1])


@dataclass(frozen=True)
class Result:
    """What was measured for a row.

    Attributes:
        row: The row.
        values: One per seed; nan: the run diverged.
        own_error: Standard error that a single run tells of itself; 0: none.
        budget: A cut run reproduces nothing, nor fails to.
    """

    row: Row
    values: tuple[float, ...]
    own_error: float = 0.0
    budget: Budget = "full"

    @property
    def mean(self) -> float:
        """Mean over the seeds; nan with a run that diverged."""
        return mean_and_error(self.values)[0]

    @property
    def error(self) -> float:
        """Standard error of the mean; nan with a run that diverged."""
        if len(self.values) == 1:
            return self.own_error
        return mean_and_error(self.values)[1]

    @property
    def verdict(self) -> str:
        """Whether the published number is reproduced."""
        row, ours, published = self.row, self.mean, self.row.published
        if self.budget == "smoke":
            return "smoke"
        if math.isnan(ours):
            return "diverged"
        if row.rule == "at_most":
            met = ours <= published + row.tolerance
        elif row.rule == "at_least":
            met = ours >= published - row.tolerance
        elif row.rule == "relative":
            met = abs(ours - published) <= row.tolerance * abs(published)
        else:
            spread = (self.error**2 + row.error**2) ** 0.5
            if not spread:
                return "no error known"
            if published and 2 * self.error >= abs(published):
                return "too noisy"  # 0 would be met, too: one run in many diverged
            met = abs(ours - published) <= 2 * spread + row.tolerance
        return "reproduced" if met else "NOT reproduced"


def read(file: Path) -> tuple[str, list[Row]]:
    """Return the title and rows of a table file.

    Raises:
        UserError: For a missing file, an unknown key or a bad value.

    A file's own `smoke` is that of all rows without one.
    """
    if not file.is_file():
        raise UserError(f"there is no table {file}")
    content = read_yaml(file)
    keys = set(content) if isinstance(content, dict) else set()
    if not {"title", "rows"} <= keys <= {"title", "rows", "smoke"}:
        raise UserError(f"{file}: a table has the keys title, rows and perhaps smoke")
    shared = {"smoke": content["smoke"]} if "smoke" in content else {}
    known = {field.name for field in fields(Row)}
    rows = []
    for i, entry in enumerate(content["rows"] or ()):
        if not isinstance(entry, dict):
            raise UserError(f"{file}, row {i + 1}: a row has keys, got {entry!r}")
        unknown = set(entry) - known
        if unknown:
            raise UserError(
                f"{file}, row {i + 1}: unknown key {sorted(unknown)[0]!r}; keys are "
                + ", ".join(sorted(known))
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in (shared | entry).items()
        }
        try:
            for key in {"published", "error", "tolerance"} & set(values):
                values[key] = float(values[key])  # YAML reads 1e-22 as text
            row = Row(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}, row {i + 1}: {error}") from error
        if not (file.parent / row.file).is_file():
            kind = "study" if row.study else "experiment"
            raise UserError(f"{file}, {row.name}: there is no {kind} {row.file}")
        if (
            len(row.seeds) > 1
            and not any("{seed}" in word for word in row.arguments)
            and kind_of(file.parent / row.file) == "theory"
        ):
            raise UserError(
                f"{file}, {row.name}: a study of the theory has no seed of its own: "
                "several seeds need a {seed} in the arguments"
            )
        rows.append(row)
    return str(content["title"]), rows


def measure(
    rows: Iterable[Row],
    base: Path,
    told: Callable[[str], None] = lambda name: None,
    budget: Budget = "full",
) -> Iterable[Result]:
    """Yield the result of each row, running what rows share once.

    Args:
        rows: What to measure.
        base: Folder that their files are relative to.
        told: Told the name of every row that begins.
        budget: "full"; or "smoke", which cuts the rows.
    """
    done: dict[tuple[Any, ...], Numbers] = {}
    for row in [row.cut() for row in rows] if budget == "smoke" else rows:
        told(row.name)
        values, own_error = [], 0.0
        for seed in row.seeds:
            flags = [word.replace("{seed}", str(seed)) for word in row.arguments]
            key = (row.file, seed, *flags)
            if key not in done:
                done[key] = _run(row, base / row.file, flags, seed)
            numbers = done[key]
            if not numbers:
                values.append(math.nan)
                continue
            for metric in filter(None, (row.metric, row.error_metric)):
                if metric not in numbers:
                    raise UserError(
                        f"{row.name}: there is no metric {metric!r}; there are "
                        + ", ".join(numbers)
                    )
            values.append(numbers[row.metric])
            if row.error_metric:
                own_error = numbers[row.error_metric]
        yield Result(row, tuple(values), own_error, budget)


def _run(row: Row, file: Path, flags: Sequence[str], seed: int) -> Numbers:
    """Return the numbers of a run; none if it diverged."""
    try:
        return SOURCES[kind_of(file)](["--config", str(file), *flags], seed)
    except Diverged:
        return {}
    except UserError as error:
        raise UserError(f"{row.name}: {error}") from error


def cells(result: Result) -> list[str]:
    """Return a result as the cells of a table's line."""
    row = result.row
    published = f"{row.published:.5g}" + (f" ± {row.error:.2g}" if row.error else "")
    ours = f"{result.mean:.5g}" + (f" ± {result.error:.2g}" if result.error > 0 else "")
    return [row.name, published, ours, str(len(row.seeds)), result.verdict, row.note]


_HEADER = ["", "published", "ours ± s.e.", "runs", "verdict", "reason"]


def write(folder: Path, title: str, results: Sequence[Result]) -> None:
    """Write table.csv and table.md."""
    lines = [cells(result) for result in results]
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow([*_HEADER, "values"])
        for line, result in zip(lines, results, strict=True):
            table.writerow([*line, " ".join(map(repr, result.values))])
    text = f"# {title}\n\n{markdown([_HEADER, *lines])}\n"
    (folder / "table.md").write_text(text, encoding="utf-8")


def main(args: Sequence[str]) -> None:
    """Measure a table, print and write it; what the user can mend is one line."""
    parser = Parser(
        prog=f"{PROGRAM} table", description="Published results beside ours."
    )
    parser.arguments = args
    parser.add_argument("file", type=str, help="a file of configs/table")
    parser.add_argument("--rows", type=str, default="*", help="wildcard on row names")
    parser.add_argument(
        "--budget",
        type=Budget,
        default="full",
        help="full: the protocols of the papers, up to hours a row; smoke: every row "
        "cut to seconds and one seed, to see that it runs: no verdict",
    )
    parser.add_argument("--list", action="store_true", help="only list the rows")
    parsed = parser.parse_args(list(args))
    file, folder, results = Path(parsed.file), None, list[Result]()
    failure, cut = "", False
    try:
        title, rows = read(file)
        rows = [row for row in rows if fnmatchcase(row.name, parsed.rows)]
        if not rows:
            raise UserError(f"--rows: no row of {file} matches {parsed.rows!r}")
        if parsed.list:
            for row in rows:
                print(f"{row.name}: published {row.published:g}")
            return
        if parsed.budget == "smoke":
            title += ", cut short"
        for result in measure(
            rows, file.parent, lambda name: print(f"{name} ..."), parsed.budget
        ):
            results.append(result)
            folder = folder or new_folder(file.stem)
            write(folder, title, results)  # after every row: the next may take hours
    except UserError as error:
        failure = str(error)
    except (KeyboardInterrupt, SystemExit) as end:
        if not interrupted(end):
            raise
        print(f"interrupted after {len(results)} of {len(rows)} rows")
        cut = True
    if folder is not None:
        table = RichTable(*_HEADER, title=title)
        for result in results:
            table.add_row(*cells(result))
        Console().print(table)
        print(f"table: {folder}/table.md")
    if failure:
        fail(failure)
    if cut:
        raise SystemExit(130)
