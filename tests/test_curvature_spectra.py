"""Spectra, traces and eigenpairs from products alone, against dense algebra."""

import math

import pytest
import torch

from lightning_ecd.curvature import (
    Spectrum,
    hutchinson_diagonal,
    hutchinson_trace,
    hutchpp_trace,
    lanczos,
    lanczos_quadrature,
    top_eigenpairs,
)
from lightning_ecd.curvature.trace import signs


def draw(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draws, dtype=torch.float64)


def with_eigenvalues(values, seed=0):
    """A symmetric matrix and its eigenvectors as rows."""
    values = torch.as_tensor(values).double()
    U = torch.linalg.qr(draw(len(values), len(values), seed=seed))[0]
    return (U * values) @ U.T, U.T


def product(A):
    return lambda rows: rows @ A


LIKE = torch.zeros(40, dtype=torch.float64)
BULK = with_eigenvalues([*torch.linspace(-1, 1, 36), 5, 8, 8, 9])[0]


def test_lanczos_keeps_its_basis_orthogonal_and_restricts_the_matrix():
    values = 0.8 ** torch.arange(60)  # loses orthogonality at once if it is not redone
    A, _ = with_eigenvalues(values)
    T, Q = lanczos(product(A), draw(3, 60), 40)
    for t, q in zip(T, Q, strict=True):
        torch.testing.assert_close(q @ q.T, torch.eye(40).double(), rtol=0, atol=1e-13)
        torch.testing.assert_close(q @ A @ q.T, t, rtol=0, atol=1e-12)


def test_full_lanczos_finds_every_eigenvalue_in_float32_too():
    A, _ = with_eigenvalues(torch.linspace(-3, 5, 30))
    T, _ = lanczos(product(A.float()), draw(1, 30).float(), 90)
    assert T.shape == (1, 30, 30) and T.dtype == torch.float64
    expected = torch.linspace(-3, 5, 30).double()
    torch.testing.assert_close(torch.linalg.eigvalsh(T)[0], expected, rtol=0, atol=1e-5)


def test_an_exhausted_space_goes_on_elsewhere_without_weight():
    A, U = with_eigenvalues(range(8))
    start = (U[2] + 2 * U[5])[None]  # spans two dimensions
    T, _ = lanczos(product(A), start, 8)
    values, vectors = torch.linalg.eigh(T[0])
    torch.testing.assert_close(values, torch.arange(8).double(), rtol=0, atol=1e-10)
    weights = vectors[0].square()
    expected = torch.tensor([0, 0, 1, 0, 0, 4, 0, 0]).double() / 5
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)


def test_the_zero_matrix_and_the_identity_have_one_eigenvalue():
    for value in (0.0, 1.0):
        spectrum = lanczos_quadrature(lambda rows, a=value: a * rows, LIKE, 3, 5)
        torch.testing.assert_close(spectrum.nodes, torch.full((3, 5), value).double())
        assert spectrum.trace()[0] == pytest.approx(40 * value)


def test_quadrature_matches_all_moments_that_gauss_promises():
    v = draw(1, 40)
    T, _ = lanczos(product(BULK), v, 6)
    values, vectors = torch.linalg.eigh(T[0])
    unit = v[0] / v[0].norm()
    for power in range(12):  # exact up to 2 m - 1
        exact = unit @ torch.linalg.matrix_power(BULK, power) @ unit
        found = vectors[0].square() @ values**power
        assert found.item() == pytest.approx(exact.item(), rel=1e-10)


def test_density_is_that_of_the_dense_eigenvalues():
    A, _ = with_eigenvalues(torch.linspace(-2, 2, 200).tolist() + [6.0] * 100)
    grid = torch.linspace(-3, 7, 400).double()
    exact = Spectrum.exact(A)
    like = torch.zeros(300, dtype=torch.float64)
    found = lanczos_quadrature(product(A), like, probes=40, steps=60)
    truth, _ = exact.density(grid, width=0.3)
    guess, error = found.density(grid, width=0.3)
    step = (grid[1] - grid[0]).item()
    assert truth.sum().item() * step == pytest.approx(1, abs=1e-3)
    assert (truth - guess).abs().sum().item() * step < 0.05
    assert ((truth - guess).abs() <= 5 * error + 1e-4).all()
    assert found.share(5, 7)[0] == pytest.approx(1 / 3, abs=5 * found.share(5, 7)[1])
    assert exact.share(5, 7)[0] == pytest.approx(1 / 3)
    assert math.isnan(exact.trace()[1])


@pytest.mark.parametrize("steps", [3, 8, 20])
def test_share_bounds_hold_for_the_measure_of_a_probe(steps):
    values = torch.cat([1e-3 * draw(30), draw(10, seed=1)]).sort()[0]
    A, U = with_eigenvalues(values)
    v = draw(1, 40, seed=2)
    masses = (U @ v[0] / v.norm()).square()
    T, _ = lanczos(product(A), v, steps)
    nodes, vectors = torch.linalg.eigh(T)
    spectrum = Spectrum(nodes, vectors[:, 0].square(), 40)
    for low, high in [(-1e-3, 1e-3), (-0.1, 0.1), (-1, 0), (-9, 9), (0.5, 0.6)]:
        truth = masses[(values > low) & (values < high)].sum().item()
        least, most = spectrum.share_bounds(low, high)
        assert -1e-12 <= least <= truth + 1e-9 and truth - 1e-9 <= most <= 1 + 1e-12
    least, most = spectrum.share_bounds(-0.1, 0.1)
    assert steps < 20 or most - least < 0.05
    assert spectrum.share_bounds(-9, 9)[1] == pytest.approx(1)


def test_share_bounds_of_an_exact_spectrum_are_equal():
    exact = Spectrum.exact(with_eigenvalues([-1.0, 0, 0, 2])[0])
    assert exact.share_bounds(-0.5, 0.5) == (0.5, 0.5)


def test_probes_in_turn_equal_probes_side_by_side():
    whole = lanczos_quadrature(product(BULK), LIKE, 5, 10, seed=3)
    parts = lanczos_quadrature(product(BULK), LIKE, 5, 10, seed=3, memory=2 * 10 * 320)
    torch.testing.assert_close(parts.nodes, whole.nodes)
    torch.testing.assert_close(parts.weights, whole.weights)
    other = lanczos_quadrature(product(BULK), LIKE, 5, 10, seed=4)
    assert not torch.allclose(other.nodes, whole.nodes)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("largest", [9, 8, 8, 5]),
        ("smallest", [-1, -1 + 2 / 35, -1 + 4 / 35, -1 + 6 / 35]),
        ("magnitude", [9, 8, 8, 5]),
    ],
)
def test_outermost_eigenpairs_also_multiple_ones(which, expected):
    values, vectors, errors = top_eigenpairs(
        product(BULK), LIKE, 4, which, tolerance=1e-9
    )
    expected = torch.tensor(expected).double()
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        vectors @ BULK, values[:, None] * vectors, rtol=0, atol=1e-7
    )
    torch.testing.assert_close(
        vectors @ vectors.T, torch.eye(4).double(), rtol=0, atol=1e-10
    )
    assert (errors < 1e-8).all()


def test_eigenpairs_survive_restarts_on_a_dense_end():
    values = torch.linspace(0, 1, 400) ** 2
    A, _ = with_eigenvalues(values)
    like = torch.zeros(400, dtype=torch.float64)
    products = []

    def counted(rows):
        products.append(len(rows))
        assert len(rows) <= 3
        return rows @ A

    found, _, errors = top_eigenpairs(counted, like, 3, tolerance=1e-6, rounds=300)
    exact = values.sort(descending=True)[0][:3].double()
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-8)
    assert (errors <= 1e-6).all() and len(products) < 300


def test_residuals_bound_the_error_of_an_unfinished_search():
    found, _, errors = top_eigenpairs(product(BULK), LIKE, 2, rounds=3)
    exact = torch.linalg.eigvalsh(BULK)
    distance = (found[:, None] - exact).abs().min(1)[0]
    assert (distance <= errors + 1e-12).all() and errors.max() > 1e-3


def test_all_eigenpairs_of_a_tiny_and_of_a_zero_matrix():
    A, _ = with_eigenvalues([3.0, -1.0])
    values, _, _ = top_eigenpairs(product(A), torch.zeros(2).double(), 2)
    torch.testing.assert_close(values, torch.tensor([3.0, -1.0]).double())
    values, _, _ = top_eigenpairs(lambda rows: 0 * rows, LIKE, 2)
    assert values.tolist() == [0, 0]


def test_signs_are_signs_and_probe_i_does_not_depend_on_their_number():
    z = signs(LIKE, 5, seed=1)
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(signs(LIKE, 3, seed=1), z[:3])
    assert abs(signs(torch.zeros(10000), 1, 0).mean().item()) < 0.05


def test_hutchinson_is_exact_for_a_diagonal_matrix():
    A = torch.linspace(-1, 3, 40).double().diag()
    value, error = hutchinson_trace(product(A), LIKE, 4)
    assert value == pytest.approx(40.0) and error == pytest.approx(0, abs=1e-12)
    diagonal, errors = hutchinson_diagonal(product(A), LIKE, 4)
    torch.testing.assert_close(diagonal, A.diagonal())
    assert not errors.any()


@pytest.mark.parametrize("estimate", [hutchinson_trace, hutchpp_trace])
def test_standard_errors_are_the_scatter_of_repetitions(estimate):
    exact = BULK.trace().item()
    found = [estimate(product(BULK), LIKE, 30, seed=s) for s in range(200)]
    values, errors = torch.tensor(found).double().T
    scatter = values.std().item()
    assert values.mean().item() == pytest.approx(exact, abs=4 * scatter / 200**0.5)
    assert errors.square().mean().sqrt().item() == pytest.approx(scatter, rel=0.2)


def test_hutchpp_is_exact_for_low_rank_and_better_elsewhere():
    low, _ = with_eigenvalues([7.0, -2.0, 1.0] + [0.0] * 37)
    value, error = hutchpp_trace(product(low), LIKE, 12)
    assert value == pytest.approx(6.0, abs=1e-10) and error < 1e-10
    steep, _ = with_eigenvalues(0.7 ** torch.arange(40))
    plain = hutchinson_trace(product(steep), LIKE, 30)[1]
    assert hutchpp_trace(product(steep), LIKE, 30)[1] < plain / 5


def test_the_diagonal_lies_within_its_errors():
    diagonal, errors = hutchinson_diagonal(product(BULK), LIKE, 400)
    deviations = (diagonal - BULK.diagonal()) / errors
    assert deviations.abs().max() < 4.5
    assert 0.7 < deviations.std() < 1.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: hutchinson_trace(p, LIKE, 0), "probes must be at least 1, got 0"),
        (lambda p: hutchpp_trace(p, LIKE, 2), "products must be at least 3, got 2"),
        (lambda p: hutchinson_diagonal(p, LIKE, 1), "probes must be at least 2"),
        (lambda p: lanczos_quadrature(p, LIKE, probes=0), "probes must be at least 1"),
        (lambda p: lanczos_quadrature(p, LIKE, steps=0), "steps must be at least 1"),
        (lambda p: top_eigenpairs(p, LIKE, 0), r"k must be in \[1, 40\], got 0"),
        (lambda p: top_eigenpairs(p, LIKE, 1, "top"), "which must be largest, smal"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(product(BULK))
