"""What a search leaves behind: tables of its trials and the best configurations."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from tune.live import best_of
from tune.trial import Mode, Record


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return trials as a table: hyper-parameters as ``config/...``, then metrics."""
    rows = [
        {
            "optimizer": record.arm,
            "trial": record.number,
            "status": record.status,
            **{f"config/{name}": value for name, value in record.values.items()},
            **record.metrics,
            "reports": record.reports,
            "seconds": record.seconds,
            "folder": record.folder,
            "error": record.error,
            "reason": record.reason,
        }
        for record in records
    ]
    return pd.DataFrame(rows)


def _nested(cell: Any) -> bool:
    return isinstance(cell, list | dict)


def write(
    folder: Path,
    records: Sequence[Record],
    configured: Mapping[str, Any],
    metric: str,
    mode: Mode,
    published: Mapping[str, Record],
) -> dict[str, Record]:
    """Write results.csv, results.parquet, best.json and best_<optimizer>.yaml.

    Args:
        folder: Of the search.
        records: All trials.
        configured: Optimizer -> function from hyper-parameters to the settings that
            `fit`, or `trajectories`, takes in a file.
        metric: What the search looked at.
        mode: "min" or "max".
        published: Optimizer -> the trial of the published hyper-parameters.

    Returns:
        Optimizer -> its best trial.
    """
    table = frame(records)
    table.to_csv(folder / "results.csv", index=False)
    for name in table.columns:  # Parquet wants one type in each
        if len(set(map(type, table[name]))) > 1 or table[name].map(_nested).any():
            table[name] = table[name].map(json.dumps)
    table.to_parquet(folder / "results.parquet", index=False)
    found: dict[str, Record] = {}
    told: dict[str, dict[str, Any]] = {}
    for arm, configure in configured.items():
        best = best_of([r for r in records if r.arm == arm], metric, mode)
        if best is None:
            continue
        found[arm] = best
        reached = best.metrics[metric]
        told[arm] = {"trial": best.number, metric: reached, "values": best.values}
        if arm in published:
            theirs = published[arm]
            value = theirs.metrics.get(metric) if theirs.status == "completed" else None
            told[arm]["published"] = {"values": theirs.values, metric: value}
        head = f"# {metric} = {reached:.6g} in trial {best.number} of {arm}.\n"
        text = yaml.safe_dump(configure(best.values), sort_keys=False)
        (folder / f"best_{arm}.yaml").write_text(head + text)
    (folder / "best.json").write_text(json.dumps(told, indent=2) + "\n")
    return found


def markdown(lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; the first line is its header."""
    table = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    table.insert(1, ["---"] * len(table[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in table)
