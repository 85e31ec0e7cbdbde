"""Parle on two processes: ``python -m tests.optimizers.replicas_on_ranks FOLDER``.

A program of its own, because a process that other tests have used is not safe to fork.
"""

import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from lightning_ecd.optimizers import Parle
from tests.cases import quadratic, start, values

SETTINGS = {"lr": 0.05, "inner_steps": 3, "inner_lr": 0.02, "rho": 0.4, "scoping": 0.1}


def loss(params, replica, calls):
    """The quadratic, tilted otherwise at every evaluation of every replica."""
    v = torch.cat([p.reshape(-1) for p in params])
    phase = 2.0 * calls + 5.0 * replica
    return quadratic(params) + 0.3 * (torch.sin(torch.arange(len(v)) + phase) * v).sum()


def run(steps, replicas, first=0, state=None, params=None):
    """Take steps; return the optimizer and its parameters.

    Args:
        steps: Number of steps.
        replicas: In this process.
        first: Which of all replicas is this process's first.
        state: To go on from, as is `params`.
        params: Tensors.
    """
    params = start() if params is None else params
    optimizer = Parle(params, replicas=replicas, **SETTINGS)
    if state is not None:
        optimizer.load_state_dict(state)
    L = SETTINGS["inner_steps"]
    calls = 0

    def closure():
        nonlocal calls
        begun, within = divmod(calls, L * replicas)
        place = begun if state is None else begun + 3
        replica, inner = divmod(within, L)
        calls += 1
        optimizer.zero_grad()
        value = loss(params, first + replica, place * L + inner)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, params


def work(rank, folder):
    """Six steps at once, and three and three with a checkpoint between."""
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    _, whole = run(6, 1, rank)
    optimizer, params = run(3, 1, rank)
    optimizer.consolidate_state_dict()
    state = optimizer.state_dict()
    resumed = [p.detach().clone().requires_grad_() for p in params]
    _, resumed = run(3, 1, rank, state, resumed)
    names = sorted(state["state"][0])
    torch.save((values(whole), values(resumed), names), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, (Path(sys.argv[1]),), nprocs=2)
