"""Size and order of the energy error of the three integrators."""

import pytest
import torch

from lightning_ecd.functions import Quadratic, Rosenbrock
from lightning_ecd.optimizers import BBI, ECDSep, ECDSepLeapfrog
from tests.cases import closure_of

BOWL = Quadratic((1.0, 10.0), minimum=0.1), (3.0, -2.0), 20.0
VALLEY = Rosenbrock(2, minimum=0.1), (-1.2, 1.0), 10.0

#: Measured with the authors' released code, in float64: step size, function, then for
#: BBI, ECDSep and leapfrog the worst |E/E0 - 1| without rescale, and the worst
#: violation just before a rescale with it.
MEASURED = [
    (0.04, BOWL, (0.96, 1.2e-2), (4.0e-2, 7.1e-4), (1.7e-4, 4.2e-6)),
    (0.01, BOWL, (0.89, 9.4e-4), (9.8e-3, 4.4e-5), (1.1e-5, 6.5e-8)),
    (0.0025, BOWL, (0.67, 5.3e-5), (2.4e-3, 2.8e-6), (6.7e-7, 1.0e-9)),
    (0.01, VALLEY, (0.98, 9.3e-2), (9.3e-2, 5.1e-3), (1.2e-3, 7.9e-5)),
    (0.0025, VALLEY, (0.99, 5.7e-3), (2.3e-2, 3.2e-4), (7.8e-5, 1.2e-6)),
]
CLASSES = (BBI, ECDSep, ECDSepLeapfrog)


def worst_violation(cls, problem, lr, conserve):
    """Return the largest |energy/E - 1| seen on the way."""
    function, start, time = problem
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    settings = {"extra_energy": 0.5, "nu": 0.0}
    if cls is BBI:
        half = 0.5 * function(x.detach()).item()
        settings = {"extra_energy": half, "fixed_bounces": 0, "patience": 10**9}
    optimizer = cls([x], lr=lr, conserve_energy=conserve, **settings)
    closure = closure_of(optimizer, [x], lambda params: function(params[0]))
    violations = []
    for _ in range(round(time / lr) + 1):
        optimizer.step(closure)
        violations.append(abs(optimizer.info["violation"]))
    return max(violations)


@pytest.mark.parametrize("conserve", [False, True])
@pytest.mark.parametrize("column", range(3), ids=[c.__name__ for c in CLASSES])
@pytest.mark.parametrize("row", [0, 1, 3], ids=str)
def test_energy_error_is_that_of_the_released_code(row, column, conserve):
    lr, problem, *expected = MEASURED[row]
    worst = worst_violation(CLASSES[column], problem, lr, conserve)
    # two digits are known
    assert worst == pytest.approx(expected[column][conserve], rel=0.06)


@pytest.mark.parametrize(("cls", "order"), [(ECDSep, 1), (ECDSepLeapfrog, 2)])
def test_order_of_the_energy_error(cls, order):
    coarse, fine = (worst_violation(cls, BOWL, lr, False) for lr in (0.04, 0.02))
    assert coarse / fine == pytest.approx(2**order, rel=0.15)
