"""The table on the screen while a search runs."""

import math
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from tune.trial import Mode, Record

_MARKS = {
    "running": "[cyan]running[/]",
    "completed": "[green]completed[/]",
    "stopped": "[yellow]stopped[/]",
    "diverged": "[magenta]diverged[/]",
    "infeasible": "[blue]infeasible[/]",
    "failed": "[red]failed[/]",
}
_ROWS = 12


def best_of(records: Iterable[Record], metric: str, mode: Mode) -> Record | None:
    """Return the best trial: of those that ended by themselves, if there are any.

    A trial that the scheduler ended after a few reports is not compared with those
    that used the whole budget.
    """
    found = [
        record
        for record in records
        if record.status != "failed"
        and math.isfinite(record.metrics.get(metric, math.nan))
    ]
    whole = [r for r in found if r.status == "completed"]
    sign = 1 if mode == "min" else -1
    return min(whole or found, key=lambda r: sign * r.metrics[metric], default=None)


def shown(value: Any) -> str:
    """Return a hyper-parameter or metric as short text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return "none"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value)


class Board:
    """Shows trials as they come: a live table, or a line each where nobody looks.

    Args:
        arm: Whose trials they are.
        metric: What the search looks at.
        mode: "min" or "max".
        samples: How many trials there will be.
        console: Where to write.
    """

    def __init__(
        self,
        arm: str,
        metric: str,
        mode: Mode,
        samples: int,
        console: Console | None = None,
    ):
        self.arm, self.metric, self.mode, self.samples = arm, metric, mode, samples
        self.console = console or Console()
        self.records: dict[int, Record] = {}
        self.started = time.monotonic()
        self._live: Live | None = None
        self._told: set[int] = set()

    def __enter__(self) -> "Board":
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self.table, console=self.console, refresh_per_second=2
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, record: Record) -> None:
        """Take a record that is new or has changed."""
        self.records[record.number] = record
        ended = record.status != "running" and record.number not in self._told
        if ended and self._live is None:
            self._told.add(record.number)
            pairs = zip(self._names(record), self._cells(record), strict=True)
            told = "  ".join(f"{name} {cell}" for name, cell in pairs)
            self.console.print(f"{self.arm}: {told}", soft_wrap=True)

    def table(self) -> Table:
        """Return the latest trials, and the best."""
        records = [self.records[i] for i in sorted(self.records)]
        ended = sum(record.status != "running" for record in records)
        left = ""
        if ended:
            spent = time.monotonic() - self.started
            left = f", {spent * (self.samples - ended) / ended / 60:.1f} min left"
        best = best_of(records, self.metric, self.mode)
        caption = f"{ended} of {self.samples} trials{left}"
        table = Table(title=self.arm, caption=caption, expand=False)
        for name in self._names(records[0]) if records else ():
            table.add_column(name, justify="left" if name == "status" else "right")
        rows = records[-_ROWS:]
        if best is not None and best not in rows:
            rows.insert(0, best)
        for record in rows:
            style = "bold" if record is best else None
            table.add_row(*self._cells(record), style=style)
        return table

    def _names(self, record: Record) -> list[str]:
        return ["trial", *record.values, "reports", self.metric, "seconds", "status"]

    def _cells(self, record: Record) -> list[str]:
        why = record.error or record.reason
        return [
            str(record.number),
            *(escape(shown(value)) for value in record.values.values()),
            str(record.reports),
            shown(record.metrics.get(self.metric, "")),
            f"{record.seconds:.1f}",
            _MARKS[record.status] + (f" {escape(why)}" if why else ""),
        ]
