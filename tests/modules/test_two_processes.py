"""Two processes equal one on the union of their batches, and agree to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.modules.toys import weights
from tests.modules.two_processes import CASES, LOCAL, fit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder of what both ranks wrote, for every case."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, "-m", "tests.modules.two_processes", str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_on_the_union(case, ranks, tmp_path):
    first, second = (torch.load(ranks / f"{case}-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["loss"], second["loss"])
    task, runner = fit(tmp_path, case)
    worst = (weights(task) - first["weights"]).abs().max().item()
    assert worst < 1e-12
    union = runner.callback_metrics["train/loss"].item()
    assert first["loss"].item() == pytest.approx(union, rel=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_ranks_that_keep_their_gradients_share_a_master(name, ranks):
    """Averaged gradients would keep all replicas where the master is."""
    first, second = (torch.load(ranks / f"{name}-{rank}.pt") for rank in (0, 1))
    assert torch.equal(first["weights"], second["weights"])
    spread = first["info"].get("spread")  # of replicas
    assert first["info"]["bytes_sent"] > 0 if spread is None else spread > 1e-4
