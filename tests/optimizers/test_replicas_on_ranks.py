"""Replicas on two processes are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cases import values
from tests.optimizers.replicas_on_ranks import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks wrote: straight, resumed, names in the checkpoint."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.optimizers.replicas_on_ranks", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_are_two_replicas_of_one(ranks):
    _, params = run(6, 2)
    for straight, _, _ in ranks:
        torch.testing.assert_close(straight, values(params), rtol=1e-12, atol=1e-13)


def test_both_hold_the_same_master(ranks):
    assert torch.equal(ranks[0][0], ranks[1][0])


def test_a_checkpoint_has_the_replicas_of_all(ranks):
    kinds = ("inner_momentum", "momentum", "offset")
    expected = [f"{kind}_{i}" for kind in kinds for i in (0, 1)]
    assert ranks[0][2] == ranks[1][2] == expected


def test_resuming_gives_every_rank_its_own(ranks):
    for straight, resumed, _ in ranks:
        torch.testing.assert_close(resumed, straight, rtol=1e-13, atol=1e-14)
