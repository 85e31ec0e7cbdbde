"""The kernels' normal numbers: the generator, their law, their independence."""

import math

import pytest
import scipy.stats
import torch

from tests.kernels.bodies import build, close, counting
from tests.reference.counter_normals import normal, threefry

N = 2**22


def draws(n=N, seed=0, step=0, offset=0, dtype=torch.float32):
    body, _ = build("Compiled", dtype)
    return body.normals(torch.empty(n, dtype=dtype), seed, step, offset)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("0 0 0 0", "0 0 0 0", "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff ffffffff ffffffff",
            "2a881696 57012287 f6c7446e a16a6732",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0 082efa98 ec4e6c89",
            "59cd1dbb b8879579 86b5d00c ac8b6d84",
        ),
    ],
)
def test_the_reference_gives_the_known_answers_of_random123(counter, key, words):
    counter, key, words = (
        [int(word, 16) for word in text.split()] for text in (counter, key, words)
    )
    assert threefry(counter, key) == words


@counting
@pytest.mark.parametrize("seed", [-3, 2**31, 2**40 + 5])
def test_draws_equal_the_plain_integers(name, seed):
    body, device = build(name)
    for step, offset in ((0, 0), (2**33 + 1, 500), (-1, 2**41 - 600)):
        z = body.normals(torch.empty(1100, device=device), seed, step, offset)
        chosen = range(0, 1100, 37)
        expected = [normal(seed, step, offset + i) for i in chosen]
        close(z[list(chosen)], expected, torch.float32)


def test_the_rarest_draws_equal_the_plain_integers():
    z = draws()
    extreme = torch.cat([z.abs().topk(50).indices, z.abs().topk(50, largest=False)[1]])
    expected = torch.tensor([normal(0, 0, int(i)) for i in extreme])
    assert torch.allclose(z[extreme], expected, rtol=2e-6, atol=1e-7)


def test_float64_draws_are_the_float32_draws():
    assert torch.equal(draws(3000, dtype=torch.float64), draws(3000).double())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_moments_are_those_of_the_normal_law(seed):
    z = draws(seed=seed).double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)):
        even = math.prod(range(1, 2 * power, 2))  # E z^(2 power)
        spread = math.sqrt((even - moment**2) / N)
        assert abs(float((z**power).mean()) - moment) < 5 * spread


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_law_is_normal_also_in_the_tails(seed):
    z = draws(seed=seed)
    assert scipy.stats.kstest(z.double().numpy(), "norm").pvalue > 1e-4
    for bound in (3.0, 4.0, 4.5, 5.0):
        expected = N * 2 * scipy.stats.norm.sf(bound)
        found = int((z.abs() > bound).sum())
        assert abs(found - expected) < 5 * math.sqrt(expected) + 1
    assert 4.5 < float(z.abs().max()) < 6.7
    positive = int((z > 0).sum())
    assert abs(positive - N / 2) < 5 * math.sqrt(N) / 2


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"step": 2**32}, {"seed": 1}, {"seed": 2**32}]
    # neighbours, the partners of a pair and of a counter, tiles
    + [{"offset": lag} for lag in (1, 2, 8, 256, 512, 768, 1024, 2**30)],
    ids=str,
)
def test_draws_of_other_counters_are_independent(other):
    a, b = draws().double(), draws(**other).double()
    # products of odd and of even functions, against the spread 1/sqrt N
    for of in (lambda v: v, lambda v: (v * v - 1) / 2**0.5, torch.sign):
        assert abs(float((of(a) * of(b)).mean())) < 5 / math.sqrt(N)


def test_pairs_fill_the_plane_evenly():
    z = draws()
    tiles = z.view(-1, 4, 256)
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3)):
        angles = torch.atan2(tiles[:, a], tiles[:, b]).flatten()
        counts = torch.histc(angles, bins=64, min=-math.pi, max=math.pi)
        assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_the_same_counters_give_the_same_bits():
    assert torch.equal(draws(5000, 3, 4), draws(5000, 3, 4))
    assert torch.equal(draws(5000, 3, 4)[700:], draws(4300, 3, 4, 700))
