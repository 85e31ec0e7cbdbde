"""Repeated runs: the optimizers compared over several seeds."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from lightning_ecd.errors import UserError
from tune import results
from tune.statistics import Welch, holm, mean_and_error, welch


@dataclass(frozen=True)
class Repeats:
    """What the runs of one setting reached, one per seed.

    Attributes:
        arm: The optimizer's name.
        metric: The name of what was measured.
        seeds: Of the runs, all different.
        values: One per seed; nan: the run diverged.
    """

    arm: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.seeds) == len(set(self.seeds)) == len(self.values):
            got = f"{self.seeds} for {len(self.values)}"
            raise ValueError(f"{self.arm}: seeds must differ, one per value, got {got}")

    @property
    def finite(self) -> tuple[float, ...]:
        """Values of the runs that did not diverge."""
        return tuple(filter(math.isfinite, self.values))

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return len(self.values) - len(self.finite)

    @property
    def mean(self) -> float:
        """Mean of the finite values; nan if there is none."""
        return mean_and_error(self.finite)[0]

    @property
    def error(self) -> float:
        """Standard error of the mean, std/√n; nan below two finite values."""
        return mean_and_error(self.finite)[1]

    @property
    def std(self) -> float:
        """Sample standard deviation (n - 1) of the finite values; nan below two."""
        return self.error * math.sqrt(len(self.finite))


Groups = Sequence[Repeats]
#: Group, reference, the test of group - reference, its p corrected by `holm`.
Compared = tuple[Repeats, Repeats, Welch, float]


def _references(groups: Groups, against: Groups) -> Groups:
    firsts = {group.metric: group for group in reversed(groups)}
    return against or [*reversed(firsts.values())]


def compare(groups: Groups, against: Groups = ()) -> list[Compared]:
    """Compare groups of runs with others of the same metric.

    Args:
        groups: Ours; without `against` the first is what the others are compared with.
        against: Another search's: each of ours is compared with each of these.

    Raises:
        UserError: If `against` has no runs of a metric of ours.
    """
    tests, references = [], _references(groups, against)
    for a in groups:
        others = [b for b in references if b.metric == a.metric]
        if not others:
            there = ", ".join(dict.fromkeys(b.metric for b in against))
            raise UserError(f"against: no runs of {a.metric}; there are {there}")
        tests += [(a, b, welch(a.values, b.values)) for b in others if b is not a]
    corrected = holm([test.p for _, _, test in tests])
    return [(*test, p) for test, p in zip(tests, corrected, strict=True)]


_HEADER = (
    *("arm", "metric", "runs", "diverged", "mean ± std", "s.e."),
    *("minus", "difference", "95 % interval", "p", "Holm p"),
)
_EXPLANATION = """\
Two-sided Welch t-test (unequal variances) of the means over the runs that did not
diverge. Difference: arm - the other, with its 95 % confidence interval; s.e.: standard
error of the mean; Holm p: corrected for all comparisons here; nan: cannot be told."""


def _cells(group: Repeats) -> list[str]:
    mean, error = f"{group.mean:.5g} ± {group.std:.2g}", f"{group.error:.2g}"
    return [group.metric, str(len(group.seeds)), str(group.diverged), mean, error]


def lines(groups: Groups, against: Groups = ()) -> list[list[str]]:
    """Return the table of `compare`: header, references, a line per comparison."""
    mark = " (against)" if against else ""
    table = [[*_HEADER]]
    for other in _references(groups, against):
        table.append([other.arm + mark, *_cells(other), *[""] * 5])
    for group, other, test, corrected in (compared := compare(groups, against)):
        interval = "{:.3g} to {:.3g}".format(*test.interval)
        numbers = [f"{test.difference:.3g}", interval, f"{test.p:.2g}"]
        rest = [other.arm + mark, *numbers, f"{corrected:.2g}"]
        table.append([group.arm, *_cells(group), *rest])
    return [line[: len(_HEADER) - (len(compared) < 2)] for line in table]


def markdown(groups: Groups, against: Groups = ()) -> str:
    """Return the table in Markdown, under a title that says which test it is."""
    table = results.markdown(lines(groups, against))
    return f"# Repeated runs\n\n{_EXPLANATION}\n\n{table}\n"


def show(groups: Groups, against: Groups = ()) -> None:
    """Print the table: the means, and what they are compared with, below."""
    header, *body = lines(groups, against)
    own, compared = slice(0, 6), slice(6, None)
    means = [line[own] for line in body]
    tests = [line[:1] + line[compared] for line in body if line[6]]
    _print(header[own], [list(line) for line in dict.fromkeys(map(tuple, means))])
    if tests:
        caption = _EXPLANATION.replace("\n", " ")
        _print(header[:1] + header[compared], tests, caption)


def _print(header: list[str], body: list[list[str]], caption: str = "") -> None:
    table = RichTable(caption=caption, box=SIMPLE, padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, overflow="fold")  # a narrow terminal cuts no digits
    for line in body:
        table.add_row(*map(Text, line))  # names in brackets are no markup
    Console().print(table)


def write(folder: Path, groups: Groups, against: Groups = ()) -> None:
    """Write repeats.csv, one line per run, and repeats.md."""
    with open(folder / "repeats.csv", "w", newline="", encoding="utf-8") as out:
        table = csv.writer(out)
        table.writerow(["arm", "metric", "seed", "value"])
        for group in groups:
            for seed, value in zip(group.seeds, group.values, strict=True):
                table.writerow([group.arm, group.metric, seed, repr(float(value))])
    (folder / "repeats.md").write_text(markdown(groups, against), encoding="utf-8")


def read(file: Path) -> list[Repeats]:
    """Return the groups of a repeats.csv; UserError says what is wrong with it."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    found: dict[tuple[str, str], dict[int, float]] = {}
    with open(file, newline="", encoding="utf-8-sig") as text:
        table = csv.DictReader(text, restval="")
        try:
            for row in table:
                runs = found.setdefault((row["arm"], row["metric"]), {})
                if (seed := int(row["seed"])) in runs:
                    raise ValueError(f"{row['arm']} has seed {seed} twice")
                runs[seed] = float(row["value"])
        except KeyError as error:
            raise UserError(f"{file}: there is no column {error}") from error
        except (ValueError, csv.Error) as error:
            raise UserError(f"{file}, line {table.line_num}: {error}") from error
    if not found:
        raise UserError(f"{file}: there are no runs")
    return [Repeats(*name, (*runs,), (*runs.values(),)) for name, runs in found.items()]
