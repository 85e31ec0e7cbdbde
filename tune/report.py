"""The report of a comparison: one HTML page, Markdown, CSV tables, figures."""

import base64
import html
import io
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable
from torch.utils.tensorboard import SummaryWriter

from lightning_ecd.parser import PROGRAM
from tune import comparison_figures as figures
from tune.live import shown
from tune.results import markdown
from tune.scores import PRICES, TAU_MAX, Scores, area

_PACKAGES = ("torch", "pytorch-lightning", "ray", "numpy")
#: Folder of the tables.
_TABLES = "tables"
_STYLE = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left} img{max-width:100%}
pre{background:#f5f5f5;padding:.7rem;overflow-x:auto} p{max-width:48rem}"""


def machine() -> dict[str, Any]:
    """Return hardware and versions."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": platform.platform(),
        "python": platform.python_version(),
        PROGRAM: version(PROGRAM),
        **{name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    """Return the processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


Section = tuple[str, str, pd.DataFrame]


def sections(scores: Scores) -> Iterator[Section]:
    """Yield title, explanation and table of all that the scores say."""
    areas = {price: area(scores.table(price)) for price in PRICES}
    yield (
        "Scores",
        f"Normalised area under the performance profiles up to τ = {TAU_MAX:g}: 1 is "
        "the best on every task, 0 never within the factor. A task that nobody solves "
        "counts against everybody.",
        pd.DataFrame(areas).sort_values("evaluations", ascending=False),
    )
    targets = {task: shown(scores.target(task)) for task in scores.tasks}
    listed = ", ".join(f"{task} {target}" for task, target in targets.items())
    baselines = " and ".join(scores.rules.baselines)
    for price in PRICES:
        yield (
            f"{price.capitalize()} to the target",
            "Median over studies of the fastest trial; inf: the target was missed in "
            f"half of them or more. Targets: {listed}: the best of {baselines} within "
            f"{scores.rules.share:.0%} of the evaluations, median over studies.",
            scores.table(price).T,
        )
    for task in scores.tasks:
        final = scores.final(task)
        yield (
            f"Best values on {task}",
            "Of the best trial of each study: mean and standard error over studies; "
            f"difference from {final.attrs['baseline']}; p: paired t-test over "
            "studies, corrected by Holm; nan: cannot be told.",
            final,
        )
    yield (
        "Share of trials that reach the target",
        "Over all studies: how forgiving an optimizer is of its hyper-parameters.",
        scores.reliability().T,
    )
    yield (
        "Width of the learning rates that reach the target",
        "Decades between the least and the largest; nan: none does.",
        scores.lr_width().T,
    )
    yield (
        "How trials ended",
        "Diverged trials are results, failed ones are errors.",
        _ends(scores.trials),
    )


def _ends(trials: pd.DataFrame) -> pd.DataFrame:
    """Return how many trials ended how, optimizers x ends."""
    table = trials.groupby(["optimizer", "status"]).size().unstack(fill_value=0)
    return table.rename_axis(index=None, columns=None)


def drawn(scores: Scores) -> Iterator[tuple[str, str, Figure]]:
    """Yield name, caption and figure of all plots."""
    yield (
        "profiles",
        "Share of tasks whose target is reached for τ times the lowest price or less.",
        figures.profiles(scores),
    )
    yield (
        "curves",
        "Best value so far of each study's best trial: median and range over studies; "
        "dashed: target.",
        figures.curves(scores),
    )
    yield (
        "sensitivity",
        "Best value of every trial over its learning rate; dashed: target.",
        figures.sensitivity(scores),
    )


def write(folder: Path, scores: Scores, content: Mapping[str, Any]) -> None:
    """Write report.html, report.md, the tables as CSV and the figures.

    Args:
        folder: Of the comparison.
        scores: What it says.
        content: Its settings and machine.
    """
    page, text = io.StringIO(), io.StringIO()
    (folder / _TABLES).mkdir(exist_ok=True)
    title = f"Comparison of {len(scores.optimizers)} optimizers"
    page.write(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body><h1>{title}</h1>"
    )
    text.write(f"# {title}\n")
    for paragraph in _preface(content, scores):
        page.write(f"<p>{html.escape(paragraph)}</p>")
        text.write(f"\n{paragraph}\n")
    for old in folder.glob("events.out.tfevents.*"):  # of an earlier report
        old.unlink()
    with SummaryWriter(str(folder)) as board:
        for name, caption, figure in drawn(scores):
            figure.savefig(folder / f"{name}.png", dpi=120)
            picture = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
            page.write(
                f'<figure><img alt="{name}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            )
            text.write(f"\n![{caption}]({name}.png)\n")
            board.add_figure(f"comparison/{name}", figure)
    for heading, explanation, table in sections(scores):
        page.write(f"<h2>{html.escape(heading)}</h2><p>{html.escape(explanation)}</p>")
        cells = table.map(shown)
        page.write(cells.to_html(border=0))
        rows = [["", *map(str, cells.columns)]]
        rows += [[str(name), *row] for name, row in cells.iterrows()]
        text.write(f"\n## {heading}\n\n{explanation}\n\n{markdown(rows)}\n")
        stem = "".join(c if c.isalnum() else "_" for c in heading.lower())
        table.to_csv(folder / _TABLES / f"{stem}.csv")
    for heading, lines in _appendix(content, scores.trials):
        body = "\n".join(lines)
        page.write(f"<h2>{heading}</h2><pre>{html.escape(body)}</pre>")
        text.write(f"\n## {heading}\n\n```\n{body}\n```\n")
    page.write("</body></html>\n")
    (folder / "report.html").write_text(page.getvalue(), encoding="utf-8")
    (folder / "report.md").write_text(text.getvalue(), encoding="utf-8")


def _preface(content: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    settings = content["settings"]
    rules = (
        f"{settings['studies']} studies of {settings['trials']} trials for each of "
        f"{len(scores.optimizers)} optimizers on each of {len(scores.tasks)} tasks: "
        "quasi-random points of one search space per optimizer, the same for all "
        "tasks; study s has seed s."
    )
    yield rules
    for name, task in settings["tasks"].items():
        if name in scores.tasks:
            limit = f", {task['seconds']:g} s" if task["seconds"] else ""
            yield (
                f"{name}: {Path(task['experiment']).stem}, {task['metric']} "
                f"({task['mode']}), {task['evaluations']} evaluations{limit} a trial."
            )


def _appendix(
    content: Mapping[str, Any], trials: pd.DataFrame
) -> Iterator[tuple[str, list[str]]]:
    spaces = [
        f"{name}: {arm['space'] or 'ranges of the registry'}"
        + (f"  {' '.join(arm['arguments'])}" if arm["arguments"] else "")
        for name, arm in content["settings"]["optimizers"].items()
    ]
    yield "Search spaces", spaces
    yield "Machine", [f"{name}: {value}" for name, value in content["machine"].items()]
    failed = trials[trials["status"] == "failed"]
    failures = [
        f"{row['task']}, {row['optimizer']}, trial {row['trial']}: {row['error']}"
        for _, row in failed.iterrows()
    ]
    yield "Failures", failures or ["none"]


def show(scores: Scores) -> None:
    """Print scores, and prices to the targets."""
    console = Console()
    for heading, _, table in islice(sections(scores), 3):
        lines = RichTable("", title=heading)
        for name in table.columns:  # a narrow terminal cuts nothing
            lines.add_column(str(name), overflow="fold")
        for name, row in table.iterrows():
            lines.add_row(str(name), *map(shown, row))
        console.print(lines)
