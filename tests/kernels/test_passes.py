"""The passes over memory: every body does the same arithmetic."""

import os
import subprocess
import sys

import pytest
import torch

import lightning_ecd.flat
from lightning_ecd import randomness
from lightning_ecd.kernels import Eager, compiled
from tests.kernels.bodies import (
    INTERPRETED,
    OFFSET,
    SEED,
    STEP,
    bodies,
    build,
    close,
    close_sum,
    counting,
    dtypes,
    lists,
    triton,
    vectors,
)
from tests.reference import passes

R, K, D, TURN = 0.97, 0.31, 0.23, 0.05
#: Around the blocks and tiles of the kernels; triton's interpreter is slow.
LENGTHS = (0, 1025) if INTERPRETED else (0, 1, 7, 1023, 1024, 1025)
LONG = 2**12 + 3 if INTERPRETED else 2**20 + 3
LONGEST = 10_000 if INTERPRETED else 10_000_019
PLACES = (1029,) if INTERPRETED else (0, 700, 1029)
BAD = ("inf",) if INTERPRETED else ("nan", "inf", "-inf")


@bodies
@dtypes
@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_pass_equals_the_plain_loop(name, dtype, n, decay):
    body, device = build(name, dtype)
    q, g, x = vectors(n, dtype, device)
    p, h, y = lists(q, g, x)

    for r in (1.0, R):
        close_sum(
            body.kick(q, g, x, r, K, decay), passes.kick(p, h, y, r, K, decay), dtype
        )
        close(q, p, dtype)

    got = body.kick_drift(q, g, x, R, K, decay, D)
    close_sum(got, passes.kick(p, h, y, R, K, decay), dtype)
    passes.drift(p, y, D)
    close(q, p, dtype)
    close(x, y, dtype)

    body.drift(q, x, -D)
    passes.drift(p, y, -D)
    close(x, y, dtype)

    z = body.normals(q, SEED, STEP, OFFSET)
    got = body.drift_turn(q, x, D, TURN, SEED, STEP, OFFSET)
    passes.drift(p, y, D)
    close_sum(got, passes.turn(p, *lists(z), TURN), dtype)
    close(q, p, dtype)
    close(x, y, dtype)

    close_sum(body.square(q), passes.square(p), dtype)
    size = (passes.square(p) * passes.dot(h, h, y, 0.0)) ** 0.5 + passes.square(p)
    close_sum(body.dot(q, g, x, decay), passes.dot(p, h, y, decay), dtype, size)
    close(g, h, dtype)  # untouched


@bodies
@dtypes
def test_long_vectors_equal_float64(name, dtype):
    body, device = build(name, dtype)
    q, g, x = vectors(LONG, dtype, device)
    p, h, y = (v.double().clone() for v in (q, g, x))
    square = body.kick(q, g, x, R, K, 0.1)
    p = R * p - K * (h + 0.1 * y)
    close(q, p.cpu(), dtype)
    close_sum(square, float(p @ p), dtype)
    square = body.kick_drift(q, g, x, 1.0, K, 0.0, D)
    p = p - K * h
    y = y + D * p
    close_sum(square, float(p @ p), dtype)
    z = body.normals(q, SEED, STEP, OFFSET)
    square = body.drift_turn(q, x, D, TURN, SEED, STEP, OFFSET)
    y = y + D * p
    p = p + TURN * z.double()
    close(q, p.cpu(), dtype)
    close(x, y.cpu(), dtype)
    close_sum(square, float(p @ p), dtype)
    close_sum(body.dot(q, g, x, 0.0), float(p @ h), dtype, float(p.norm() * h.norm()))


@bodies
@pytest.mark.parametrize("law", ["constant", "large and small"])
def test_long_float32_sums_are_accurate(name, law):
    body, device = build(name)
    n = LONGEST
    q = torch.full((n,), 0.1) if law == "constant" else torch.logspace(-6, 3, n)
    zeros = torch.zeros(2, n, device=device)
    exact = float(q.double() @ q.double())
    for square in (
        body.square(q.to(device)),
        body.kick(q.to(device), *zeros, 1.0, 0.0, 0.0),
        body.kick_drift(q.to(device), *zeros, 1.0, 0.0, 0.0, 0.0),
        body.drift_turn(q.to(device), zeros[0], 0.0, 0.0, 0, 0, 5),
    ):
        assert float(square) == pytest.approx(exact, rel=1e-6)


@bodies
@dtypes
@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_stays_so(name, dtype, bad):
    body, device = build(name, dtype)
    n = 1030
    cases = [(v, at, decay) for v in range(3) for at in PLACES for decay in (0.0, 0.1)]
    for poisoned, at, decay in cases:
        q, g, x = three = vectors(n, dtype, device)
        three[poisoned][at] = float(bad)
        reached = poisoned < 2 or decay != 0
        square = body.kick(q, g, x, R, K, decay)
        assert torch.isfinite(q).sum() == n - reached
        assert bool(torch.isfinite(q[at])) is not reached
        assert bool(torch.isfinite(torch.as_tensor(square))) is not reached
        p, y = q.clone(), x.clone()
        body.kick_drift(q, g, x, 1.0, K, decay, D)
        body.drift_turn(p, y, D, TURN, 0, 0, 0)
        for moved in (x, y):
            assert torch.isfinite(moved).sum() == n - 1
            assert not torch.isfinite(moved[at])


@counting
@dtypes
def test_any_split_gives_the_same_bits(name, dtype):
    body, device = build(name, dtype)
    n = 1500
    q, g, x = vectors(n, dtype, device)
    p, y = q.clone(), x.clone()
    body.kick_drift(q, g, x, R, K, 0.1, D)
    whole = float(body.drift_turn(q, x, D, TURN, SEED, STEP, OFFSET))
    total = 0.0
    cuts = [0, 1, 247, 1025, n]
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        part = slice(start, stop)
        body.kick_drift(p[part], g[part], y[part], R, K, 0.1, D)
        square = body.drift_turn(p[part], y[part], D, TURN, SEED, STEP, OFFSET + start)
        total += float(square)
    assert torch.equal(p, q) and torch.equal(y, x)
    assert total == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("name", ["Eager", triton])
def test_numbers_may_be_tensors_on_the_device(name, monkeypatch):
    body, device = build(name, torch.float64)
    monkeypatch.setattr(lightning_ecd.flat, "on_host", lambda v: False)

    def number(value):
        return torch.tensor(value, dtype=torch.float64, device=device)

    q, g, x = vectors(1025, torch.float64, device)
    p, h, y = (v.clone() for v in (q, g, x))
    got = body.kick_drift(q, g, x, number(R), number(K), number(0.1), number(D))
    expected = body.kick_drift(p, h, y, R, K, 0.1, D)
    assert got.shape == () and got.dtype == torch.float64
    close_sum(got, float(expected), torch.float64)
    step = torch.tensor(STEP, device=device)
    got = body.drift_turn(q, x, number(D), number(TURN), SEED, step, 3)
    expected = body.drift_turn(p, y, D, TURN, SEED, STEP, 3)
    close_sum(got, float(expected), torch.float64)
    close(q, p.cpu(), torch.float64)
    close(x, y.cpu(), torch.float64)


def test_several_threads_give_the_bits_of_one(monkeypatch):
    monkeypatch.setattr(compiled, "_SHARE", 5000)
    body, _ = build("Compiled")
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            q, g, x = vectors(2**15 + 5, torch.float32)
            body.kick_drift(q, g, x, R, K, 0.1, D)
            square = body.drift_turn(q, x, D, TURN, SEED, STEP, OFFSET)
            results.append((q, x, square))
    finally:
        torch.set_num_threads(threads)
    for q, x, square in results[1:]:
        assert torch.equal(q, results[0][0]) and torch.equal(x, results[0][1])
        assert square == pytest.approx(results[0][2], rel=1e-9)


@dtypes
def test_rows_are_independent_runs(dtype):
    body, runs, n = Eager(), 5, 33
    q, g, x = (v.view(runs, n) for v in vectors(runs * n, dtype))
    p, h, y = (v.clone() for v in (q, g, x))
    draws = torch.Generator().manual_seed(1)
    r, k, d, turn = torch.rand(4, runs, 1, generator=draws, dtype=torch.float64)
    for decay in (0.0, 0.1):
        square = body.kick_drift(q, g, x, r, k, decay, d)
        dot = body.dot(q, g, x, decay)
        assert square.shape == dot.shape == (runs, 1)
        assert square.dtype == dot.dtype == torch.float64
        for i in range(runs):
            one = p[i], h[i], y[i]
            expected = body.kick_drift(
                *one, float(r[i]), float(k[i]), decay, float(d[i])
            )
            close_sum(square[i], expected, dtype)
            product = body.dot(*one, decay)
            close_sum(dot[i], product, dtype, abs(product) + expected)
    close(q, p, dtype)
    close(x, y, dtype)
    z = randomness.normals(q, SEED, STEP, OFFSET)
    square = body.drift_turn(q, x, d, turn, SEED, STEP, OFFSET)
    expected = p.double() + turn * z.double()
    close(q, expected, dtype)
    close(square, expected.square().sum(1, keepdim=True), dtype)


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(7), torch.zeros(8, dtype=torch.float64), torch.zeros(8, 2)[:, 0]],
    ids=["shorter", "other type", "strided"],
)
def test_the_compiled_body_refuses_vectors_that_do_not_fit(wrong):
    body, _ = build("Compiled")
    q = torch.zeros(8)
    with pytest.raises(ValueError, match="contiguous torch.float32 vectors of one"):
        body.kick(q, wrong, q.clone(), 1.0, 1.0, 0.0)


@pytest.mark.skipif(INTERPRETED, reason="runs in the interpreter already")
def test_triton_s_interpreter_passes_the_same_tests():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", os.path.dirname(__file__), "-q"]
    # numpy, which does the interpreter's work, warns of inf - inf
    command += ["-k", "Triton", "-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
