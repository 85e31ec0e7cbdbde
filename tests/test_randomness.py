"""Random numbers are functions of a seed and counters, and have the right law."""

import math

import pytest
import torch

from lightning_ecd.randomness import generator, mixed, normals, subsets, uniforms

LAWS = [normals, uniforms]


@pytest.mark.parametrize("law", LAWS)
def test_the_same_seed_and_counters_give_the_same_bits(law):
    like = torch.empty(100)
    assert torch.equal(law(like, 3, 1, 4), law(like, 3, 1, 4))


@pytest.mark.parametrize("law", LAWS)
def test_seed_number_and_order_of_counters_matter(law):
    like = torch.empty(100)
    keys = [(3,), (4,), (3, 0), (3, 0, 0), (3, 1, 4), (3, 4, 1), (3, 5), (-3,)]
    draws = [law(like, *key) for key in keys]
    for i, a in enumerate(draws):
        assert not any(torch.equal(a, b) for b in draws[:i])


@pytest.mark.parametrize("law", LAWS)
def test_global_generators_neither_matter_nor_move(law):
    torch.manual_seed(1)
    first = law(torch.empty(10), 0, 7)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(law(torch.empty(10), 0, 7), first)
    torch.set_rng_state(state)
    law(torch.empty(10), 0, 8)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_draws_are_shaped_and_typed_as_asked(law, dtype):
    drawn = law(torch.empty(3, 5, dtype=dtype), 0)
    assert drawn.shape == (3, 5) and drawn.dtype == dtype


def test_normals_have_the_moments_of_the_normal_law():
    n = 200_000
    z = normals(torch.empty(n, dtype=torch.float64), 11, 5)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = 4.5 * math.sqrt(variance / n)
        assert abs((z**power).mean().item() - moment) < error


def test_uniforms_fill_the_unit_interval_evenly():
    n = 200_000
    u = uniforms(torch.empty(n, dtype=torch.float64), 11, 5)
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 20, 0, 1)
    chi2 = ((counts - n / 20) ** 2 / (n / 20)).sum().item()
    assert chi2 < 43.8  # the 99.9 % quantile with 19 degrees of freedom


def test_consecutive_counters_are_uncorrelated():
    n, lags = 400, 50
    rows = torch.stack(
        [normals(torch.empty(n, dtype=torch.float64), 0, step) for step in range(lags)]
    )
    correlation = rows @ rows.T / n
    off = correlation - torch.diag(torch.diag(correlation))
    assert off.abs().max() < 5 / math.sqrt(n)


def test_first_draws_of_consecutive_counters_are_uniform():
    """A poor hash would show here: one number from each of many counters."""
    like = torch.empty(1, dtype=torch.float64)
    u = torch.cat([uniforms(like, 0, step) for step in range(4000)])
    counts = torch.histc(u, 10, 0, 1)
    assert ((counts - 400) ** 2 / 400).sum().item() < 27.9  # 99.9 %, 9 degrees


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5, -(10**30)])
def test_any_integer_is_a_seed(seed):
    assert 0 <= mixed(seed, 3) < 2**63
    generator(seed, -1, 2**70)


def test_hashes_do_not_collide():
    hashes = {mixed(s, a, b) for s in range(20) for a in range(30) for b in range(30)}
    assert len(hashes) == 20 * 30 * 30


def test_one_bit_of_a_counter_flips_half_of_the_hash():
    flips = [
        (mixed(0, step) ^ mixed(0, step ^ (1 << bit))).bit_count()
        for step in range(200)
        for bit in range(10)
    ]
    assert sum(flips) / len(flips) == pytest.approx(31.5, abs=0.5)


def test_a_seed_alone_gives_the_published_splitmix64():
    """First outputs of the reference implementation (Vigna, splitmix64.c)."""
    assert mixed(1234567) == 6457827717110365317 >> 1
    assert mixed(0) == 0xE220A8397B1DCDAF >> 1


def test_subsets_are_distinct_and_every_order_is_as_likely():
    found = subsets(60_000, 3, 5, 0)
    assert found.shape == (60_000, 3)
    assert found.min() == 0 and found.max() == 4
    numbers = (found * torch.tensor([25, 5, 1])).sum(1)
    counts = torch.bincount(numbers, minlength=125)
    assert (counts > 0).sum() == 60  # 5 * 4 * 3 orders, none with a repetition
    expected = 1000
    chi_squared = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi_squared < 59 + 5 * math.sqrt(2 * 59)


def test_subsets_of_everything_are_permutations():
    found = subsets(4, 6, 6, 1, 2)
    assert (found.sort(1)[0] == torch.arange(6)).all()
    assert torch.equal(found, subsets(4, 6, 6, 1, 2))
    assert not torch.equal(found, subsets(4, 6, 6, 1, 3))
