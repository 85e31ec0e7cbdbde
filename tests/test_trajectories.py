"""Many runs at once equal each run alone."""

import subprocess
import sys

import pytest
import torch

from lightning_ecd.errors import UserError
from lightning_ecd.functions import Ackley, Quadratic, Rosenbrock, TwoBasins
from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers import BBI, REGISTRY, ECDSep, HeavyBall
from lightning_ecd.trajectories import run
from tests.cases import CASES, build, ours, variants

STARTS = torch.tensor(
    [[3.0, -2.0], [1.5, -1.1], [-1.2, 1.0], [2.3, 1.7]], dtype=torch.float64
)


class Same(Eager):
    """Passes that draw the same for every run and step."""

    def normals(self, like, seed, step, offset):
        return pattern("normal", like)


def pattern(kind, like):
    """Return draws that are the same in every row."""
    n = like.shape[-1]
    row = torch.linspace(0.1, 0.8, n, dtype=like.dtype).flip(-1) ** 2
    return row.expand_as(like).clone()


def with_the_same_draws(optimizer):
    """Replace what an optimizer draws by a constant pattern."""
    optimizer.draw = pattern
    optimizer._body = Same
    return optimizer


def alone(optimizer_of, function, start, steps):
    """Return the point after steps of one run, by autograd."""
    x = start.clone().requires_grad_()
    optimizer = optimizer_of([x])

    def closure():
        optimizer.zero_grad()
        value = function(x)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)
    return x.detach()


def has_rows(name):
    return REGISTRY[name].traits.rows


@pytest.mark.parametrize("function", [Quadratic((1.0, 3.0), 0.1), Ackley("standard")])
@variants(has_rows)
def test_rows_equal_runs_alone(name, settings, function):
    def make(params):
        optimizer = build(name, settings, params)
        return with_the_same_draws(optimizer) if ours(name) else optimizer

    outcome = run(function, make, STARTS, 12)
    expected = torch.stack([alone(make, function, s, 12) for s in STARTS])
    torch.testing.assert_close(outcome.last_point, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(outcome.last, function(expected), rtol=1e-8, atol=1e-9)


def test_every_optimizer_says_whether_runs_can_be_rows():
    assert {name for name in CASES if has_rows(name)} >= {"SGD", "BBI", "ECDSep"}


def test_draws_differ_between_rows_and_not_between_times():
    starts = torch.tensor([[1.0, 1.0]] * 5, dtype=torch.float64)

    def last(seed):
        def make(params):
            return ECDSep(params, lr=0.1, nu=0.1, extra_energy=1.0)

        return run(Quadratic(minimum=0.1), make, starts, 30, seed=seed).last_point

    assert torch.equal(last(0), last(0))
    assert not torch.equal(last(0), last(1))
    assert len(last(0).unique(dim=0)) == 5


def test_a_run_ends_at_its_target_and_the_others_go_on():
    def make(params):
        return HeavyBall(params, lr=0.02, momentum=0.5)

    function = Quadratic((1.0, 3.0))
    scales = torch.tensor([1e-3, 0.1, 1.0, 10.0, 30.0], dtype=torch.float64)
    starts = scales[:, None] * torch.ones(5, 2, dtype=torch.float64)
    outcome = run(function, make, starts, 150, target=1e-3)
    free = run(function, make, starts, 150)
    assert outcome.reached.tolist() == [True, True, True, True, False]
    assert outcome.steps[0] == 0 and outcome.steps[-1] == 150
    assert outcome.steps.tolist() == sorted(outcome.steps.tolist())
    assert (outcome.best[:4] < 1e-3).all() and outcome.best[4] >= 1e-3
    for i in range(5):  # the step before did not reach it
        one = run(function, make, starts[i : i + 1], max(int(outcome.steps[i]) - 1, 1))
        assert outcome.steps[i] == 0 or float(one.best) >= 1e-3
    # whoever stays is not disturbed by who leaves
    assert torch.equal(outcome.last_point[-1], free.last_point[-1])


def test_leaving_keeps_momenta_energies_and_counters():
    """A run ends the same whether a hundred others left before it or none did."""

    def make(params):
        return with_the_same_draws(
            BBI(params, lr=0.05, bounce_every=7, fixed_bounces=3, patience=9)
        )

    starts = torch.cat([1e-3 * torch.ones(100, 2), STARTS]).double()
    function = Quadratic((1.0, 3.0), minimum=0.1)
    both = run(function, make, starts, 60, target=0.12)
    one = run(function, make, STARTS, 60, target=0.12)
    assert (both.steps[:100] == 0).all() and (one.steps > 5).all()
    torch.testing.assert_close(
        both.last_point[100:], one.last_point, rtol=1e-12, atol=0
    )
    assert torch.equal(both.steps[100:], one.steps)


def test_best_is_the_lowest_value_and_where_it_was():
    function = Quadratic((1.0, 1.0))

    def make(params):
        return HeavyBall(params, lr=1.5, momentum=0.9)  # overshoots

    outcome = run(function, make, STARTS, 50, record=4)
    values = torch.stack(outcome.history.values)
    torch.testing.assert_close(outcome.best, values.min(0).values)
    assert outcome.best_step.tolist() == values.argmin(0).tolist()
    torch.testing.assert_close(function(outcome.best_point), outcome.best)


def test_a_run_that_diverges_harms_no_other():
    def make(params):
        return torch.optim.SGD(params, lr=1e-3)

    starts = torch.tensor([[1e8, 1e8], [0.5, 0.5]], dtype=torch.float64)
    outcome = run(Rosenbrock(), make, starts, 50)
    assert not outcome.last[0].isfinite()
    assert outcome.last[1] < 1


def test_runs_stop_in_the_basin_that_they_enter():
    def make(params):
        return HeavyBall(params, lr=0.05, momentum=0.0)

    starts = torch.tensor([[-2.5, -3.0], [3.0, 2.0], [10.0, -10.0]]).double()
    outcome = run(TwoBasins(), make, starts, 3, stop_in_basin=True)
    assert outcome.basin.tolist()[2] == 0 and outcome.steps[2] == 3
    full = run(TwoBasins(), make, starts[:2], 200, stop_in_basin=True)
    assert full.basin.tolist() == [1, 2]
    assert (TwoBasins().basin(full.last_point) == full.basin).all()


def test_the_record_is_bounded_and_ends_with_the_run():
    def make(params):
        return HeavyBall(params, lr=0.1)

    outcome = run(Quadratic(), make, STARTS, 500, record=2, points=50, target=1e-2)
    history = outcome.history
    assert 20 <= len(history.steps) <= 50
    assert torch.stack(history.places).shape == (len(history.steps), 2, 2)
    for i in range(2):
        here = torch.stack(history.values)[:, i].isfinite()
        beyond = torch.tensor(history.steps) > outcome.steps[i]
        assert not (here & beyond).any() and (here | beyond).all()


def test_chunks_change_nothing_where_nothing_is_drawn():
    def make(params):
        return ECDSep(params, lr=0.1, nu=0.0)

    function = Quadratic(minimum=0.1)
    whole = run(function, make, STARTS, 20)
    parts = run(function, make, STARTS, 20, chunk=3)
    torch.testing.assert_close(whole.last_point, parts.last_point, rtol=1e-12, atol=0)


def test_progress_counts_run_steps():
    seen = []
    run(
        Quadratic(),
        lambda params: HeavyBall(params, lr=0.1),
        STARTS,
        100,
        chunk=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (400, 400)


def test_optimizers_that_mix_rows_are_refused():
    class Mixing(torch.optim.SGD):
        pass

    with pytest.raises(UserError, match="Mixing mixes the rows.*modules.FunctionTask"):
        run(Quadratic(), lambda params: Mixing(params, lr=0.1), STARTS, 5)


def test_a_function_without_basins_cannot_be_stopped_in_one():
    with pytest.raises(UserError, match="stop_in_basin: Quadratic has no basins"):
        run(Quadratic(), lambda p: HeavyBall(p), STARTS, 5, stop_in_basin=True)


@pytest.mark.slow
def test_bbi_mixes_over_two_basins():
    """Published: 1.7248, standard error 0.080, of 2000 runs."""

    def make(params):
        settings = {"bounce_every": 20, "fixed_bounces": 1, "patience": 750}
        return BBI(params, lr=0.01, f_min=1e-3, **settings)

    starts = torch.tensor([[10.0, -10.0]] * 2000, dtype=torch.float64)
    outcome = run(TwoBasins(), make, starts, 25000, stop_in_basin=True)
    one, two = ((outcome.basin == i).sum().item() for i in (1, 2))
    assert one + two > 1990
    error = one / two * (1 / one + 1 / two) ** 0.5
    assert abs(one / two - 1.7248) < 2 * (error**2 + 0.080**2) ** 0.5


def test_twenty_thousand_runs_fit_into_a_gigabyte():
    code = (
        "import resource, torch\n"
        "from lightning_ecd.functions import TwoBasins\n"
        "from lightning_ecd.optimizers import BBI\n"
        "from lightning_ecd.trajectories import run\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "starts = torch.tensor([[10.0, -10.0]]).double().expand(20000, 2)\n"
        "run(TwoBasins(), BBI, starts, 20, stop_in_basin=True, record=10)\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1024
