"""The Triton kernels on a GPU: nothing waits, graphs replay, memory is the bound."""

import statistics

import pytest
import torch

from lightning_ecd.kernels import Eager, body_of
from tests.kernels.bodies import build, gpu, needs_cuda

pytestmark = [gpu, needs_cuda]
SEED = 11


def number(value, dtype=torch.float64):
    return torch.full((), value, dtype=dtype, device="cuda")


def triton_body():
    body = body_of(torch.empty(3, device="cuda"))
    assert type(body).__name__ == "Triton"
    return body


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_pass_waits_for_the_device(dtype):
    body = triton_body()
    q, g, x = torch.randn(3, 5000, dtype=dtype, device="cuda")
    r, k, d, turn = (number(v) for v in (0.9, 0.1, 0.2, 0.05))
    step = number(3, torch.int64)
    for mode in ("default", "error"):  # compiled in the first round
        torch.cuda.set_sync_debug_mode(mode)
        try:
            body.kick(q, g, x, 1.0, k, 0.0)
            body.kick_drift(q, g, x, r, k, 0.1, d)
            body.drift(q, x, d)
            square = body.drift_turn(q, x, d, turn, SEED, step, 5)
            body.drift_turn(q, x, d, turn, SEED, 3, 5)
            body.square(q)
            body.dot(q, g, x, 0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert square.is_cuda and square.shape == () and square.dtype == torch.float64


def test_draws_are_those_of_the_cpu():
    if type(host := body_of(torch.empty(3))) is Eager:
        pytest.skip("needs a C compiler")
    here = triton_body().normals(torch.empty(100_000, device="cuda"), SEED, 7, 300)
    there = host.normals(torch.empty(100_000), SEED, 7, 300)
    torch.testing.assert_close(here.cpu(), there, rtol=1e-5, atol=1e-5)


def test_a_graph_follows_its_numbers():
    body = triton_body()
    q, g, x = torch.randn(3, 70_001, device="cuda")
    p, y = q.clone(), x.clone()
    r, k, d, turn = numbers = [number(0.0) for _ in range(4)]
    step, squares = number(0, torch.int64), number(0.0)

    def update():
        squares.copy_(body.kick(q, g, x, r, k, 0.1))
        squares.add_(body.drift_turn(q, x, d, turn, SEED, step, 0))
        step.add_(1)

    start = torch.cuda.Stream()
    start.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(start):
        update()  # compiles; moves nothing but the momentum, by r = 0
    torch.cuda.current_stream().wait_stream(start)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    q.copy_(p)
    x.copy_(y)
    step.zero_()
    plain = Eager()
    for i in range(4):
        values = (0.9 + 0.01 * i, 0.1 * (i + 1), 0.2, 0.05 * i)
        for place, value in zip(numbers, values, strict=True):
            place.fill_(value)
        graph.replay()
        expected = plain.kick(p, g, y, values[0], values[1], 0.1)
        plain.drift(p, y, values[2])
        p.add_(body.normals(p, SEED, i, 0), alpha=values[3])
        expected = expected + plain.square(p)
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        assert float(squares) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("offset", [0, 2**33 + 5])
def test_any_split_gives_the_same_bits_at_any_place(offset):
    body, _ = build("Triton")
    q, x = torch.randn(2, 9000, device="cuda")
    p, y = q.clone(), x.clone()
    body.drift_turn(q, x, 0.1, 0.2, SEED, 1, offset)
    for start, stop in ((0, 3), (3, 1030), (1030, 9000)):
        part = slice(start, stop)
        body.drift_turn(p[part], y[part], 0.1, 0.2, SEED, 1, offset + start)
    assert torch.equal(p, q) and torch.equal(y, x)


def seconds(run, repeats=20):
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


@pytest.mark.parametrize(
    ("name", "bytes_per_entry"), [("kick", 12), ("kick_drift", 20), ("drift_turn", 16)]
)
def test_passes_move_bytes_about_as_fast_as_a_copy(
    name, bytes_per_entry, record_property
):
    body, n = triton_body(), 2**27
    q, g, x = torch.randn(3, n, device="cuda")
    k = number(0.1)
    runs = {
        "kick": lambda: body.kick(q, g, x, 1.0, k, 0.0),
        "kick_drift": lambda: body.kick_drift(q, g, x, 1.0, k, 0.0, k),
        "drift_turn": lambda: body.drift_turn(q, x, k, k, SEED, 0, 0),
    }
    copied = 8 * n / seconds(lambda: x.copy_(g))
    moved = bytes_per_entry * n / seconds(runs[name])
    record_property("bytes per second, pass and copy", (moved, copied))
    assert moved > 0.4 * copied
