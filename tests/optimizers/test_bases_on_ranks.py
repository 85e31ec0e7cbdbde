"""Workers on several processes exchange coordinates and move as those of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cases import values
from tests.optimizers.bases_on_ranks import WAYS, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory):
    """What all ranks wrote: for every way the weights and the bytes sent."""
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, "-m", "tests.optimizers.bases_on_ranks", str(folder)]
    done = subprocess.run(
        [*program, str(request.param)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("way", WAYS)
def test_processes_are_the_workers_of_one_to_the_bit(ranks, way):
    _, params = run(way, len(ranks))
    for found in ranks:
        assert torch.equal(found[way][0], values(params))


@pytest.mark.parametrize("way", WAYS)
def test_only_coordinates_travel(ranks, way):
    """Six of eight bytes each, whatever the 30 parameters."""
    assert {found[way][1] for found in ranks} == {6 * 8.0}


def test_losses_are_averaged_where_there_are_no_gradients(ranks):
    assert all(torch.equal(found["NES"], ranks[0]["NES"]) for found in ranks)


def test_a_law_is_refused_with_the_number_of_processes(ranks):
    for found in ranks:
        assert found["refused"].startswith(f"on {len(ranks)} processes basis must be")


def test_processes_that_draw_other_directions_are_refused(ranks):
    assert all("draw different directions" in found["seeds"] for found in ranks)
