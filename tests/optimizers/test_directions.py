"""Descent in random bases, whatever its formulas: workers, divisions, laws."""

from functools import partial

import pytest
import torch
from torch.nn.functional import mse_loss

from lightning_ecd.optimizers import FPD, NES, RBD, RBDNES, ZeroOrderRBD
from tests.cases import descend, quadratic, start, values
from tests.modules.toys import Regression, loader, samples, trainer
from tests.reference import bases

# -- workers -----------------------------------------------------------------------


def parts(params):
    """Return a closure that sees another loss at every call: slopes 1, 2, 3, 1, ..."""
    calls = 0

    def loss(ps):
        nonlocal calls
        calls += 1
        return (1 + (calls - 1) % 3) * quadratic(ps)

    return loss


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("share", [False, True])
def test_workers_add_up_their_own_directions_or_reduce_coordinates(share, reduce):
    params = start()
    g = torch.linspace(0.2, 2.0, 30, dtype=torch.float64) * (values(params) - 0.3)
    optimizer = RBD(
        params,
        0.1,
        6,
        workers=3,
        share_basis=share,
        reduce=reduce,
        basis="rademacher",
        transformation="norm",
    )
    w = values(params)
    phis = [optimizer.projectors(0 if share else i)[0].rows(0, 6) for i in range(3)]
    scale = 1 / 3 if reduce == "mean" else 1.0
    found = [phi @ (g * (i + 1)) for i, phi in enumerate(phis)]
    if share:
        c = torch.tensor(bases.transform(sum(found).mul(scale).tolist(), "norm"))
        s = phis[0].T @ c.double()
    else:
        shaped = [torch.tensor(bases.transform(c.tolist(), "norm")) for c in found]
        s = sum(phi.T @ c.double() for phi, c in zip(phis, shaped, strict=True)) * scale
    descend(optimizer, params, parts(params), 1)
    torch.testing.assert_close(values(params), w - 0.1 * s, rtol=1e-6, atol=1e-7)


def test_a_group_with_dimensions_of_its_own_is_a_compartment():
    params = start()
    optimizer = RBD(
        [{"params": params[:2], "dimensions": 3}, {"params": params[2:]}],
        dimensions=7,
        lr=0.1,
    )
    assert [(c.dimensions, c.size) for c in optimizer.compartments] == [
        (7, 13),
        (3, 17),
    ]
    text = optimizer.describe()
    assert "3 directions for 17 parameters: 3x4[12], 5[5]" in text
    assert text.endswith("10 coordinates for 30 parameters: 1 for 3")


def test_the_published_divisions():
    """Fully connected and convolutional network on MNIST, d = 250."""
    dense = [(128, 784), (128,), (10, 128), (10,)]
    sizes = partial(RBD, dimensions=250, compartments="size", compartment_size=30_000)

    def directions(shapes, make):
        return [c.dimensions for c in make(start(shapes=shapes)).compartments]

    assert directions(dense, sizes) == [250] * 5
    assert directions(dense, partial(sizes, split_dimensions=True)) == [64] * 5
    linear = partial(RBD, dimensions=1000, compartments="linear")
    whole = partial(linear, compartment_size=10**9)
    assert directions(dense, whole) == [102, 10, 10, 10]
    cut = partial(linear, compartment_size=40_000)
    assert directions(dense, cut) == [34, 34, 34, 10, 10, 10]
    cnn = [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (64, 64, 3, 3), (64,)]
    cnn += [(64, 576), (64,), (10, 64), (10,)]
    parts = sizes(start(shapes=cnn)).compartments
    assert [c.dimensions for c in parts] == [250] * 7
    tensors = [sorted(set(c.tensors)) for c in parts]
    assert tensors == [[0, 1, 2, 3], [4], [4], [5], [6], [6], [7, 8, 9]]


# -- what must hold ----------------------------------------------------------------


def test_an_orthonormal_basis_of_all_dimensions_is_sgd():
    params, others = start(), start()
    for basis in ("orthonormal", "orthonormal_in_law", "srht"):
        d = 32 if basis == "srht" else 30
        if basis == "srht":  # the whole transform of the next power of two
            normalize = 32**0.5
        else:
            normalize = "auto"
        optimizer = RBD(params, 0.1, d, basis=basis, normalize=normalize)
        plain = torch.optim.SGD(others, 0.1)
        descend(optimizer, params, quadratic, 10)
        descend(plain, others, quadratic, 10)
        torch.testing.assert_close(values(params), values(others))


@pytest.mark.parametrize("basis", ["normal", "srht", "countsketch"])
def test_a_fixed_projection_stays_in_its_subspace(basis):
    params = start()
    before = values(params)
    optimizer = FPD(params, 0.05, 6, basis=basis)
    descend(optimizer, params, quadratic, 50)
    rows = optimizer.projectors()[0].raw(0, 6)
    away = values(params) - before
    inside = torch.linalg.lstsq(rows.T, away[:, None]).solution
    torch.testing.assert_close((rows.T @ inside)[:, 0], away)
    assert away.norm() > 0.1


@pytest.mark.parametrize("cls", [NES, RBDNES])
@pytest.mark.parametrize("antithetic", [False, True])
def test_ranks_do_not_see_the_scale_of_the_loss(cls, antithetic):
    ways = []
    for scale, shift in ((1, 0), (16, -3)):
        params = start()
        optimizer = cls(params, 0.05, 8, antithetic=antithetic)
        descend(optimizer, params, lambda p, a=scale, b=shift: a * quadratic(p) + b, 5)
        ways.append(values(params))
    torch.testing.assert_close(*ways)


def test_evolution_goes_downhill_on_a_slope():
    """Along a constant gradient every step must lower the loss."""
    params = [torch.zeros(40, dtype=torch.float64, requires_grad=True)]
    losses = descend(NES(params, 0.1, 30), params, lambda p: p[0].sum(), 10)
    assert all(b < a for a, b in zip(losses, losses[1:], strict=False))


def test_in_law_refuses_what_needs_rows():
    optimizer = RBD(start(), basis="in_law")
    with pytest.raises(NotImplementedError, match="no rows"):
        optimizer.projectors()[0].raw(0, 1)


# -- without a gradient ----------------------------------------------------------------


class Task(Regression):
    """A toy that keeps no record, which vmap could not."""

    def loss(self, batch):
        x, y = batch
        return mse_loss(self.network(x).squeeze(-1), y)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (partial(NES, dimensions=6, std=0.05), 6),
        (partial(NES, dimensions=6, antithetic=True), 3),
        (partial(NES, dimensions=6, fresh=False), 1),
        (partial(RBDNES, dimensions=6), 1),
        (partial(ZeroOrderRBD, dimensions=6), 1),
    ],
)
def test_points_at_once_are_points_one_by_one(make, parts, tmp_path):
    """By hand: losses at the points, each on its own part of the batch."""
    seen = []

    class Recorded(make.func):
        def losses(self, points, parts, evaluate, value):
            found = super().losses(points, parts, evaluate, value)
            seen.append((points.clone(), list(parts), found.clone()))
            return found

    task = Task(partial(Recorded, lr=0.05, **make.keywords))
    data = loader(4, torch.float64, minibatches=parts, order="sequential")
    runner = trainer(tmp_path, precision="64-true", max_steps=1)
    task.double()
    runner.fit(task, data)
    x, y = samples(dtype=torch.float64)
    for points, chosen, losses in seen:
        for point, part, loss in zip(points, chosen, losses, strict=True):
            torch.nn.utils.vector_to_parameters(point, task.parameters())
            own = slice(4 * (part % parts), 4 * (part % parts) + 4)
            assert loss.item() == pytest.approx(task.loss((x[own], y[own])).item())
    assert {p % parts for _, chosen, _ in seen for p in chosen} == set(range(parts))


def test_forward_mode_slopes_are_the_coordinates_of_the_gradient(tmp_path):
    """Rounding alone: RBD and ZeroOrderRBD(oracle="jvp") take the same steps."""
    ways = []
    for make in (RBD, partial(ZeroOrderRBD, oracle="jvp")):
        torch.manual_seed(0)
        task = Task(partial(make, lr=0.05, dimensions=6, basis="rademacher"))
        task.double()
        runner = trainer(tmp_path, precision="64-true", max_steps=8)
        runner.fit(task, loader(4, torch.float64))
        ways.append(values(list(task.parameters())))
    torch.testing.assert_close(*ways, rtol=1e-10, atol=1e-12)


def test_forward_mode_needs_a_task():
    with pytest.raises(TypeError, match="oracle='jvp' needs"):
        descend(ZeroOrderRBD(start(), oracle="jvp"), start(), quadratic, 1)
