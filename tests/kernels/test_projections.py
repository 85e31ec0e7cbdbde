"""Products with random bases in Triton are those in C, whatever makes them."""

import pytest
import torch

from lightning_ecd.kernels import products_of, projections_of
from tests.kernels.bodies import (
    INTERPRETED,
    SEED,
    dtypes,
    gpu,
    needs_compiler,
    needs_cuda,
    triton,
)

#: Two tiles and a part of a third; rows whose counters need 64 bits.
N, COUNTERS = 2048 + 77, [3, (5 << 32) + 1, 2]
kinds = pytest.mark.parametrize("kind", ["normals", "signs"])


@needs_compiler
@pytest.mark.parametrize("name", [triton])
@kinds
@dtypes
def test_products_are_those_of_the_cpu(name, kind, dtype):
    from lightning_ecd.kernels.triton_projections import TritonProjections

    here, device = TritonProjections(), "cpu" if INTERPRETED else "cuda"
    g, c = torch.randn(N, dtype=dtype), torch.randn(len(COUNTERS), dtype=dtype)
    there = projections_of(g)
    found, squares = here.project(kind, g.to(device), COUNTERS, SEED)
    expected, lengths = there.project(kind, g, COUNTERS, SEED)
    assert found.dtype == torch.float64
    close = {"rtol": 2e-6, "atol": 2e-5}  # normals are made in float32
    torch.testing.assert_close(found.cpu(), expected, **close)
    if kind == "normals":
        torch.testing.assert_close(squares.cpu(), lengths, **close)
    sums = here.expand(kind, c.to(device), g.to(device), COUNTERS, SEED)
    expected = there.expand(kind, c, g, COUNTERS, SEED)
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-5, atol=5e-6)
    if kind == "signs":  # the bits themselves
        rows = [
            here.expand(kind, torch.ones(1).to(device), g.to(device), [i], SEED)
            for i in COUNTERS
        ]
        for row, counter in zip(rows, COUNTERS, strict=True):
            one = there.expand(kind, torch.ones(1), g, [counter], SEED)
            assert torch.equal(row.cpu(), one)


@needs_compiler
@pytest.mark.parametrize("name", [triton])
@kinds
def test_a_long_projection_is_added_up_from_several_programs(name, kind):
    from lightning_ecd.kernels.triton_projections import SPAN, TritonProjections

    device = "cpu" if INTERPRETED else "cuda"
    g = torch.randn(1024 * SPAN + 77)
    found, _ = TritonProjections().project(kind, g.to(device), [9, 4], SEED)
    expected, _ = projections_of(g).project(kind, g, [9, 4], SEED)
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-6, atol=2e-4)


@gpu
@needs_cuda
@kinds
def test_no_product_waits_for_the_device(kind):
    g = torch.randn(100_000, device="cuda")
    products = products_of(g)
    assert type(products).__name__ == "TritonProjections"
    for mode in ("default", "error"):  # compiled in the first round
        torch.cuda.set_sync_debug_mode(mode)
        try:
            c, _ = products.project(kind, g, range(250), SEED)
            products.expand(kind, c, g, range(250), SEED)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert c.is_cuda


@gpu
@needs_cuda
@kinds
def test_products_on_a_gpu_beat_stored_rows(kind):
    """Words per second are printed; the rows alone would be 100 MB."""
    g = torch.randn(101_770, device="cuda")
    products, rows = products_of(g), torch.randn(250, 101_770, device="cuda")

    def made():
        c, _ = products.project(kind, g, range(250), SEED)
        return products.expand(kind, c, g, range(250), SEED)

    def naive():
        return (torch.randn_like(rows) @ g) @ rows

    times = {}
    for name, run in {"made": made, "naive": naive}.items():
        run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(20):
            run()
        end.record()
        torch.cuda.synchronize()
        times[name] = start.elapsed_time(end) / 20
    words = 2 * 250 * 101_770 / (32 if kind == "signs" else 1)
    print(f"{kind}: {times}, {words / times['made'] * 1e3:.3g} words/s")
    assert times["made"] < times["naive"]
