"""RBD on several processes: ``python -m tests.optimizers.bases_on_ranks FOLDER N``.

A program of its own, because a process that other tests have used is not safe to fork.
"""

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import NES, RBD
from tests.cases import quadratic, start, values

WAYS = {
    "independent": {"basis": "normal"},
    "sum": {"basis": "rademacher", "reduce": "sum", "momentum": 0.5},
    "shared": {"basis": "srht", "share_basis": True, "transformation": "ranks"},
    "ranks of each": {"basis": "countsketch", "transformation": "ranks"},
    "adam": {"basis": "normal", "inner": "adam", "redraw_every": 3},
}


def loss(params, worker, step):
    """The quadratic, tilted otherwise for every worker and step."""
    v = torch.cat([p.reshape(-1) for p in params])
    phase = 2.0 * step + 5.0 * worker
    return quadratic(params) + 0.3 * (torch.sin(torch.arange(len(v)) + phase) * v).sum()


def run(way, workers, first=0, steps=8):
    """Take steps; return the optimizer and its parameters.

    Args:
        way: One of `WAYS`.
        workers: In this process.
        first: Number of this process's first worker.
        steps: Number of steps.
    """
    params = start()
    settings = {"lr": 0.05, "dimensions": 6, "workers": workers, **WAYS[way]}
    optimizer = RBD(params, **settings)
    calls = 0

    def closure():
        nonlocal calls
        step, worker = divmod(calls, workers)
        calls += 1
        optimizer.zero_grad()
        value = loss(params, first + worker, step)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, params


def work(rank, folder, count):
    """Run all ways, as one worker of several."""
    store = distributed.FileStore(str(folder / "store"), count)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    found = {}
    for way in WAYS:
        optimizer, params = run(way, 1, rank)
        found[way] = values(params), optimizer.info["bytes_sent"]
    params = start()
    evolution = NES(params, 0.05, 8, std=0.02)
    for step in range(3):
        evolution.step(lambda step=step: loss(params, rank, step))
    found["NES"] = values(params)
    try:
        RBD(start(), basis="in_law").step(lambda: quadratic(start()))
    except UserError as error:
        found["refused"] = str(error)
    try:
        RBD(start(), seed=rank // (count - 1)).step(lambda: quadratic(start()))
    except UserError as error:
        found["seeds"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    processes = int(sys.argv[2])
    multiprocessing.spawn(work, (Path(sys.argv[1]), processes), nprocs=processes)
