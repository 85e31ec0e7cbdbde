"""Random bases: adjoint products, moments, seeds, and laws drawn without rows."""

import pytest
import torch

from lightning_ecd.bases import BASES, Explicit, Projector
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import FPD
from lightning_ecd.randomness import generator
from tests.kernels.bodies import needs_compiler
from tests.reference.counter_normals import normal, threefry

REAL = sorted(name for name, cls in BASES.items() if cls.rows_exist)
INDEPENDENT = [name for name in REAL if BASES[name].rows_independent]
ORTHOGONAL = ["orthonormal", "srht", "countsketch"]
N, D = 1500, 40  # more than a tile of the compiled products, and not a multiple

real = pytest.mark.parametrize("name", REAL)
compiled = pytest.param("compiled", marks=needs_compiler)
bodies = pytest.mark.parametrize("body", ["eager", compiled], indirect=True)


@pytest.fixture
def body(request, monkeypatch):
    """Choose who makes the products."""
    if request.param == "eager":
        monkeypatch.setenv("LIGHTNING_ECD_KERNELS", "eager")


def basis(name, n=N, d=D, seed=5, first=0, dtype=torch.float64):
    return BASES[name](torch.zeros(n, dtype=dtype), range(first, first + d), seed)


def vector(n=N, seed=1):
    return torch.randn(n, generator=generator(seed), dtype=torch.float64)


@bodies
@real
def test_products_are_those_with_the_rows(name, body):
    made, g, c = basis(name), vector(), vector(D, 2)
    rows = basis(name).rows(0, D)
    assert rows.shape == (D, N)
    torch.testing.assert_close(made.project(g), rows @ g, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(made.expand(c), c @ rows, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(made.squares(), rows.square().sum(1))
    torch.testing.assert_close(rows[7:9], basis(name).rows(7, 9))


@bodies
@real
def test_projection_and_expansion_are_adjoint_in_float32(name, body):
    made = basis(name, dtype=torch.float32)
    g, c = vector().float(), vector(D, 2).float()
    left, right = made.project(g) @ c, g @ made.expand(c)
    size = g.norm() * made.expand(c).norm()
    assert abs(left - right) < 2e-6 * size


@bodies
@real
def test_entries_have_the_moments_of_their_law(name, body):
    """Over 200 x 1500 entries; lognormal has heavy tails."""
    rows = basis(name, d=200).rows(0, 200)
    mean = -0.5 if name == "bernoulli_reference" else 0.0
    square = {
        "uniform": 1 / 3,
        "bernoulli_reference": 1.25,
        "lognormal": 4.670774,  # (e - 1) e
    }.get(name, 1.0)
    count = rows.numel()
    assert rows.mean().item() == pytest.approx(mean, abs=6 * (square / count) ** 0.5)
    spread = 0.15 if name == "lognormal" else 0.02
    assert rows.square().mean().item() == pytest.approx(square, rel=spread)
    values = {"rademacher": {-1.0, 1.0}, "bernoulli_reference": {-1.5, 0.5}}
    if name in values:
        assert set(rows.unique().tolist()) == values[name]
    if name == "uniform":
        assert -1 <= rows.min() < -0.999 and 0.999 < rows.max() < 1


@bodies
@pytest.mark.parametrize("name", sorted({*REAL} - {"bernoulli_reference"}))
def test_the_mean_of_the_projector_is_a_multiple_of_the_identity(name, body):
    """E[Pᵀ P] = (d/D) E[e²] I, over 4000 bases of 4 rows of 6 entries."""
    total, draws = torch.zeros(6, 6, dtype=torch.float64), 4000
    for seed in range(draws):
        rows = basis(name, 6, 4, seed).rows(0, 4) / 6**0.5
        total += rows.T @ rows
    square = {"uniform": 1 / 3, "lognormal": 4.670774}.get(name, 1.0)
    expected = torch.eye(6, dtype=torch.float64) * square * 4 / 6
    error = 0.3 if name == "lognormal" else 0.05
    torch.testing.assert_close(total / draws, expected, rtol=0, atol=error)


@bodies
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_structured_rows_are_orthogonal(name, body):
    """Those of the transform are cropped from 2048 to 1500 entries."""
    rows = basis(name, n=2048 if name == "srht" else N).rows(0, D)
    gram = rows @ rows.T
    off = gram - gram.diagonal().diag()
    assert off.abs().max() < 1e-8 * gram.diagonal().max()
    if name != "countsketch":
        assert gram.diagonal().allclose(torch.full_like(gram.diagonal(), rows.shape[1]))


@bodies
@real
def test_bases_are_functions_of_seed_and_counters(name, body):
    rows = basis(name).rows(0, D)
    assert torch.equal(rows, basis(name).rows(0, D))
    assert not torch.equal(rows, basis(name, seed=6).rows(0, D))
    other = basis(name, first=1 << 32).rows(0, D)
    assert not torch.equal(rows, other)
    if name in INDEPENDENT:
        assert torch.equal(rows[3:5], basis(name, first=3).rows(0, 2))
        assert not (rows[:, None] == other[None]).all(-1).any()


@needs_compiler
def test_compiled_normals_are_those_of_threefry():
    row = basis("normal", seed=2**40 + 5, first=3).rows(0, 1)[0]
    for place in (0, 1, 255, 256, 1023, 1024, 1499):
        expected = normal(2**40 + 5, 3, place)
        assert row[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@needs_compiler
def test_compiled_signs_are_the_bits_of_threefry():
    """Bit b of word l of a tile is the sign of its entry 32 b + l."""
    seed, counter = 2**40 + 5, (7 << 32) + 3
    row = basis("rademacher", seed=seed, first=counter).rows(0, 1)[0]
    key = (seed & 0xFFFFFFFF, seed >> 32, 0, 0)
    for place in (0, 1, 31, 32, 1023, 1024, 1499):
        tile, within = divmod(place, 1024)
        bit, word = divmod(within, 32)
        call = tile * 8 + word % 8
        step = (counter & 0xFFFFFFFF, counter >> 32)
        words = threefry((call, 0, *step), key)
        assert (row[place] < 0) == bool(words[word // 8] >> bit & 1)


@needs_compiler
@pytest.mark.parametrize("kind", ["normal", "rademacher"])
def test_threads_change_nothing(kind):
    n, before = 2**17 + 77, torch.get_num_threads()
    g, c = vector(n), vector(64, 2)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            made = basis(kind, n, 64)
            results.append((made.project(g), made.expand(c)))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# -- in law --------------------------------------------------------------------------

LAWS = {"in_law": "normal", "orthonormal_in_law": "orthonormal"}


def samples(name, normalize, draws, transform=lambda c: c):
    """Return |s| and u·s of directions for one gradient, with first coordinates."""
    n, d = 12, 4
    g = torch.linspace(-1, 2, n, dtype=torch.float64)
    u = g / g.norm()
    blocks = [slice(0, 5), slice(5, n)] if normalize == "tensor" else [slice(0, n)]
    rows = []
    for draw in range(draws):
        parts = [
            (part, basis(name, part.stop - part.start, d, 1000 * draw + b))
            for b, part in enumerate(blocks)
        ]
        projector = Projector(parts, normalize, n)
        c = projector.project(g)
        s = projector.expand(transform(c))
        rows.append(torch.stack([s.norm(), u @ s, c[0], s[0]]))
    return torch.stack(rows)


def distance(a, b):
    """Return the Kolmogorov-Smirnov distance of two samples."""
    a, b = a.round(decimals=9), b.round(decimals=9)  # what is constant stays so
    both = torch.cat([a, b]).sort().values
    below = [torch.searchsorted(v.sort().values, both, right=True) for v in (a, b)]
    return (below[0] / len(a) - below[1] / len(b)).abs().max().item()


@pytest.mark.parametrize(
    ("name", "normalize", "transform"),
    [
        ("in_law", "auto", lambda c: c),
        ("in_law", "auto", torch.sign),
        ("in_law", "row", lambda c: c),
        ("in_law", "tensor", lambda c: c * c.abs()),
        ("orthonormal_in_law", "auto", lambda c: c),
        ("orthonormal_in_law", "auto", torch.sign),
    ],
)
def test_a_law_is_that_of_the_rows(name, normalize, transform):
    """Kolmogorov-Smirnov at 1e-4: D < 2.23 sqrt(2/m) for two samples of m."""
    draws = 3000
    ours = samples(name, normalize, draws, transform)
    theirs = samples(LAWS[name], normalize, draws, transform)
    for column in range(4):
        limit = 2.23 * (2 / draws) ** 0.5
        assert distance(ours[:, column], theirs[:, column]) < limit


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("normalize", ["auto", "row", "tensor"])
def test_a_gradient_of_zero_moves_nothing(name, normalize):
    made = basis(name, 8, 3)
    projector = Projector([(slice(0, 8), made)], normalize, 8)
    c = projector.project(torch.zeros(8, dtype=torch.float64))
    assert torch.equal(c, torch.zeros_like(c))
    assert torch.equal(projector.expand(c), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("name", ["orthonormal", "orthonormal_in_law", "srht"])
def test_more_directions_than_there_are_is_one_clear_line(name):
    with pytest.raises(UserError, match="dimensions must be at most"):
        basis(name, 8, 20)


@pytest.mark.parametrize(("name", "kept"), [("normal", True), ("srht", False)])
def test_rows_are_stored_where_that_is_faster(name, kept):
    w = torch.nn.Parameter(torch.ones(50, dtype=torch.float64))
    optimizer = FPD([w], dimensions=5, basis=name, stored=True)
    (projector,) = optimizer.projectors()
    assert isinstance(projector.blocks[0][1], Explicit) is kept
    assert optimizer.projectors()[0] is projector
    g = torch.linspace(0, 1, 50, dtype=torch.float64)
    (made,) = FPD([w], dimensions=5, basis=name, stored=False).projectors()
    torch.testing.assert_close(projector.project(g), made.project(g))
