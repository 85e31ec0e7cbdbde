"""Memory of kernels and moments of 3000 samples, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
N = 3000
START = f"""
import torch
from lightning_ecd.theory import *
from modules import ShallowNet
from tests.benchmarks.memory import resident
torch.set_num_threads(1)
before = resident("VmRSS")
N = {N}
"""
END = """
print(resident("VmHWM") - before)
"""
IMAGES = """
network, X = ShallowNet(784, 1000), torch.randn(N, 784)
"""
RANDOM = """
A, d = torch.randn(N, 50, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
K, rates = A @ A.T, schedule(2, 0.5, 0.3, 10)
"""
CLOSED = """
shallow_kernel(X, network.first.weight, network.first.bias, network.last.weight)
"""
LAYERS = """
layer_kernel(network, X)
"""
AVERAGED = """
averaged(K, Averaged.start(d), rates, 2)
"""
ALL = """
sides = Companions(K, d, rank=None)
sides.begin(rates, lambda step: torch.arange(10)[None])
sides.advance(2)
"""


def peak(code):
    """Return the most memory that code takes, in matrices of N x N float64 numbers."""
    done = subprocess.run(
        [sys.executable, "-c", START + code + END],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / (8 * N**2)


@pytest.mark.parametrize("code", [CLOSED, LAYERS], ids=["closed", "layers"])
def test_the_kernel_of_three_thousand_images_fits_into_two_gibibytes(code):
    assert 1 < peak(IMAGES + code) < 2**31 / (8 * N**2)


@pytest.mark.slow
@pytest.mark.parametrize("code", [AVERAGED, ALL], ids=["averaged", "all"])
def test_exact_moments_of_three_thousand_samples_fit_into_a_gibibyte(code):
    # the limits that are stated to who has less count on 12.5 matrices
    assert 6 < peak(RANDOM + code) < 12.5 < 2**30 / (8 * N**2)
