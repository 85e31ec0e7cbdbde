"""The bodies to test, and vectors for them."""

import os
import shutil

import pytest
import torch

from lightning_ecd.kernels import Compiled, Eager
from lightning_ecd.kernels.build import _COMPILERS, library

#: Triton's interpreter does the work of a GPU; it is slow.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float64)
SEED, STEP, OFFSET = 2**40 + 5, 17, 777

COMPILER = next(filter(None, map(shutil.which, _COMPILERS)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)
triton = pytest.param("Triton", marks=[] if INTERPRETED else [gpu, needs_cuda])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
bodies = pytest.mark.parametrize("name", ["Eager", "Compiled", triton])
#: Those that draw as `passes.c` does.
counting = pytest.mark.parametrize("name", ["Compiled", triton])


def build(name, dtype=torch.float32):
    """Return a body and the device of its vectors."""
    if name == "Eager":
        return Eager(), "cpu"
    if name == "Compiled":
        built = library()
        if built is None:
            pytest.skip("needs a C compiler")
        return Compiled(built, dtype), "cpu"
    from lightning_ecd.kernels.triton_passes import Triton

    return Triton(), "cpu" if INTERPRETED else "cuda"


def vectors(n, dtype, device="cpu", seed=0):
    """Return q, g, x as unaligned parts of longer vectors."""
    draws = torch.Generator().manual_seed(seed)
    whole = torch.randn(3, n + 8, generator=draws, dtype=torch.float64)
    return [whole[i].to(device, dtype)[i + 1 : i + 1 + n] for i in range(3)]


def lists(*tensors):
    return [v.double().tolist() for v in tensors]


def close(got, expected, dtype):
    """Assert that vectors agree to the rounding of `dtype`."""
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    expected = torch.as_tensor(expected, dtype=torch.float64)
    error = (got.double().cpu() - expected).abs()
    assert error.shape == expected.shape
    assert bool((error <= tolerance * (2 + expected.abs())).all()), error.max()


def close_sum(got, expected, dtype, scale=None):
    """Assert that a sum is accurate relative to `scale`, or to itself."""
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert abs(float(got) - expected) <= tolerance * (
        expected if scale is None else scale
    )
