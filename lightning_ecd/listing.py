"""The listing of the registry: a table, or JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_ecd.optimizers import REGISTRY


def records(pattern: str = "*") -> list[dict[str, Any]]:
    """Return the records of the optimizers whose name or family matches.

    Args:
        pattern: A shell wildcard; case does not count.

    Returns:
        One plain dictionary per optimizer: name, class, traits and search ranges.
    """
    wanted = pattern.lower()
    return [
        {
            "name": name,
            "class": f"{entry.cls.__module__}.{entry.cls.__qualname__}",
            **asdict(entry.traits),
            "ranges": {key: repr(value) for key, value in entry.ranges.items()},
        }
        for name, entry in REGISTRY.items()
        if fnmatchcase(name.lower(), wanted)
        or fnmatchcase(entry.traits.family.lower(), wanted)
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return records as the table that stands in the README."""
    lines = [
        "| optimizer | family | what it is | evaluations | state | paper |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row["name"], row["family"], row["summary"], row["evaluations"])
        lines.append("| " + " | ".join((*cells, row["state"], row["paper"])) + " |")
    return "\n".join(lines)


def main(args: Sequence[str]) -> None:
    """Print the registered optimizers."""
    parser = argparse.ArgumentParser(
        "lightning-ecd optimizers", description="List the registered optimizers."
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="wildcard on name or family"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--markdown", action="store_true", help="the README's table")
    options = parser.parse_args(args)
    rows = records(options.pattern)
    if not rows:
        parser.error(
            f"no optimizer matches {options.pattern!r}: registered are "
            + ", ".join(REGISTRY)
        )
    if options.json:
        print(json.dumps(rows, indent=2))
    elif options.markdown:
        print(markdown(rows))
    else:
        table = Table("optimizer", "family", "what it is", "needs")
        for row in rows:
            needs = ["loss"] if row["needs_loss"] else []
            needs += ["gradient", *(["noise"] if row["draws_noise"] else [])]
            if row["evaluations"] != "1":
                needs.append(f"{row['evaluations']} evaluations")
            table.add_row(row["name"], row["family"], row["summary"], ", ".join(needs))
        Console().print(table)
