"""Prints every bar as one table: ``python -m tests.benchmarks``.

Ratios of two things timed in turn in one process, medians, one thread. MNIST must be
at hand (LIGHTNING_ECD_DATA, or a download).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    bases,
    curvature,
    exploration,
    laplacian,
    loops,
    meta,
    steps,
    theory,
)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows: list[tuple[str, float, str, bool | None]] = []
    for network in steps.NETWORKS:
        for name, ratio in steps.ratios(network).items():
            bar = steps.BARS.get((name, network))
            met = None if bar is None else ratio <= bar
            label = f"{name} / {steps.BASE}, step, {network}"
            rows.append((label, ratio, f"<= {bar}" if bar else "", met))
    for network in exploration.NETWORKS:
        for noise, ratio in exploration.ratios(network).items():
            most = exploration.BARS[noise] if network == "mnistfc" else None
            met = None if most is None else ratio <= most
            label = f"EntropySGD noise={noise:g} / {exploration.BASE}, per evaluation, "
            rows.append((label + network, ratio, f"<= {most}" if most else "", met))
    rows += list(random_bases())
    for label, meta_case in meta.CASES.items():
        ratio, least = meta.speedup(label), meta_case.bar
        text = f"one problem at a time / ours, inner step of meta-training, {label}"
        rows.append((text, ratio, f">= {least:g}", ratio >= least))
    for name, least in theory.BARS.items():
        ratio = theory.speedup(name)
        label = f"straightforward / ours, {name}"
        rows.append((label, ratio, f">= {least:g}", ratio >= least))
    seconds, most = theory.map_seconds(), theory.MAP_BAR
    rows.append(("map of 5000 losses, seconds", seconds, f"<= {most}", seconds <= most))
    for name, case in laplacian.CASES.items():
        ratio = laplacian.speedup(name)
        label = f"nested autograd / forward Laplacian, {name}"
        rows.append((label, ratio, f">= {case.bar}", ratio >= case.bar))
    memory, most = laplacian.peak_memory(), laplacian.MEMORY_BAR
    rows.append(("PINN step at full size, GiB", memory, f"<= {most}", memory <= most))
    for pool in curvature.POOLS:
        try:
            ratio = curvature.speedup(pool)
        except ImportError as error:
            print(error)
            break
        label = f"HIPS autograd / ours, row of the small LeNet's Hessian, {pool}"
        rows.append((label, ratio, f">= {curvature.BAR:g}", ratio >= curvature.BAR))
    for batch_size in (50, 128):
        ratio = loops.loader_speedup(batch_size)
        label = f"our loader / PIL DataLoader, batches per second, batch {batch_size}"
        bar_text = f">= {loops.LOADER_BAR:g}"
        rows.append((label, ratio, bar_text, ratio >= loops.LOADER_BAR))
    for batch_size, bar in loops.OVERHEAD_BARS.items():
        with tempfile.TemporaryDirectory() as folder:
            ratio = loops.overhead(batch_size, Path(folder))
        label = f"Lightning / plain loop, LeNet 201,528 step, batch {batch_size}"
        rows.append((label, ratio, f"<= {bar}", ratio <= bar))
    table = Table("measured side by side, one thread", "ratio", "bar", "met")
    for label, ratio, bar_text, met in rows:
        verdict = "" if met is None else ("yes" if met else "NO")
        table.add_row(label, f"{ratio:.3g}", bar_text, verdict)
    Console(width=110).print(table)


def random_bases() -> Iterator[tuple[str, float, str, bool | None]]:
    """Yield the rows of descent in random bases."""
    times = bases.steps()
    for name in (*bases.BASES, "FPD", bases.NAIVE):
        milliseconds, most = 1e3 * times[name], bases.STEP_BARS.get(name)
        met = None if most is None else milliseconds <= most
        label = f"{name}, step alone, ms, d = {bases.DIMENSIONS}"
        yield label, milliseconds, f"<= {most}" if most else "", met
    for name, most in bases.NAIVE_BARS.items():
        ratio = times[name] / times[bases.NAIVE]
        yield f"{name} / {bases.NAIVE}", ratio, f"<= {most}", ratio <= most
    times = bases.training_steps()
    ratio, most = times["in_law"] / times[bases.BASE], bases.WHOLE_BAR
    yield f"in_law / {bases.BASE}, training step", ratio, f"<= {most}", ratio <= most
    for name, most in bases.MEMORY_BARS.items():
        vectors = bases.memory(name)
        label = f"{name}, memory of a step in vectors of all parameters"
        yield label, vectors, f"<= {most}", vectors <= most


if __name__ == "__main__":
    main()
