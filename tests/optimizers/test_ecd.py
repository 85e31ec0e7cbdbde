"""Invariants of the energy-conserving family."""

import math
import warnings

import pytest
import torch

from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers import BBI, ECDSep
from tests.cases import closure_of, descend, quadratic, rosenbrock, start, values


class Recorder:
    """Runs an optimizer and keeps what can be seen from outside at each step."""

    def __init__(self, optimizer, params, loss):
        self.optimizer, self.params = optimizer, params
        self.closure = closure_of(optimizer, params, loss)

    def step(self):
        """Take a step; return V, gradient and displacement."""
        before = values(self.params)
        V = self.optimizer.step(self.closure).item()
        return V, self.optimizer.g.clone(), values(self.params) - before


def never(**more):
    """Arguments of a BBI that does not bounce."""
    return {"bounce_every": 10**20, "patience": 10**25, "fixed_bounces": 0, **more}


@pytest.mark.parametrize("extra", [0.0, 0.7])
@pytest.mark.parametrize("loss", [quadratic, rosenbrock])
def test_rescaled_momentum_has_the_energy_of_the_start_bbi(loss, extra):
    lr, params = 0.03, start()
    optimizer = BBI(params, lr=lr, **never(extra_energy=extra))
    run = Recorder(optimizer, params, loss)
    E = loss(params).item() + extra
    unscaled = 0
    for i in range(60):
        V, g, moved = run.step()
        p = moved * E / (lr * V) + 0.5 * lr * (V / E + E / V) * g
        if optimizer.info["unscaled"] == unscaled and i > 0:
            assert math.sqrt(V * (V + float(p @ p))) == pytest.approx(E, rel=1e-12)
        unscaled = optimizer.info["unscaled"]
    assert unscaled < 30


@pytest.mark.parametrize(("eta", "s", "extra"), [(1, 1, 0.5), (2.5, 1, 0.5), (2, 0, 0)])
def test_rescaled_momentum_has_the_energy_of_the_start_ecdsep(eta, s, extra):
    lr, params = 0.02, start()
    optimizer = ECDSep(params, lr=lr, eta=eta, s=s, extra_energy=extra, nu=0.0)
    run = Recorder(optimizer, params, quadratic)
    E = math.log(quadratic(params).item() ** eta) + math.log(s + (extra if s else 1))
    for i in range(60):
        V, g, moved = run.step()
        after = optimizer.info["momentum"]
        # invert the drift: moved = 2 lr p / (s + |p|²)
        p = moved * (s + after**2) / (2 * lr) + lr * eta * g / V
        if i > 0:
            energy = math.log(s + float(p @ p)) + eta * math.log(V)
            assert energy == pytest.approx(E, abs=1e-11)


def test_weight_decay_is_part_of_the_conserved_energy():
    lr, decay, params = 0.03, 0.3, start()
    optimizer = BBI(params, lr=lr, weight_decay=decay, **never(extra_energy=0.4))

    def potential():
        x = values(params)
        return quadratic(params).item() + 0.5 * decay * float(x @ x)

    E = potential() + 0.4
    run = Recorder(optimizer, params, quadratic)
    for _ in range(30):
        V, force = potential(), decay * values(params)
        _, g, moved = run.step()
        p = moved * E / (lr * V) + 0.5 * lr * (V / E + E / V) * (g + force)
        assert math.sqrt(V * (V + float(p @ p))) == pytest.approx(E, rel=1e-12)


@pytest.mark.parametrize("conserve", [True, False])
@pytest.mark.parametrize("lr", [1e-3, 0.3, 5.0, 1e4])
def test_a_separable_step_is_no_longer_than_lr(lr, conserve):
    params = start()
    optimizer = ECDSep(
        params, lr=lr, nu=0.05, extra_energy=2.0, conserve_energy=conserve
    )
    run = Recorder(optimizer, params, rosenbrock)
    for _ in range(100):
        _, _, moved = run.step()
        assert moved.norm() <= lr * (1 + 1e-9)


@pytest.mark.parametrize("lr", [1e-3, 4e-3, 1.6e-2])
def test_born_infeld_speed_is_at_most_the_root_of_v(lr):
    params = start()
    optimizer = BBI(params, lr=lr, **never(extra_energy=1.0))
    run = Recorder(optimizer, params, quadratic)
    for _ in range(200):
        V, _, moved = run.step()
        assert moved.norm() <= lr * math.sqrt(V) * (1 + 5 * lr)


@pytest.mark.parametrize("eta", [1.0, 3.0])
def test_separable_trajectories_do_not_depend_on_the_scale_of_the_loss(eta):
    ends = []
    for factor in (1.0, 10.0):
        params = start()
        optimizer = ECDSep(params, lr=0.2, eta=eta, nu=1e-3, extra_energy=0.5)
        descend(optimizer, params, lambda p, f=factor: f * quadratic(p), 60)
        ends.append(values(params))
    torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 2.0, 4.0])
def test_a_huge_lr_gives_the_polyak_step(eta):
    params = start()
    optimizer = ECDSep(params, lr=1e6, eta=eta, nu=0.0, extra_energy=0.5, f_min=0.02)
    run = Recorder(optimizer, params, quadratic)
    for _ in range(3):
        V, g, moved = run.step()
        polyak = -(2 / eta) * (V - 0.02) * g / (g @ g)
        torch.testing.assert_close(moved, polyak, rtol=1e-4, atol=1e-6)


def bounces(optimizer, params, loss, calls):
    """Return the 0-based calls that bounced, checking what a bounce keeps."""
    run, seen = Recorder(optimizer, params, loss), []
    for call in range(calls):
        count = optimizer.info.get("bounces", 0)
        momentum = optimizer.info.get("momentum")
        _, _, moved = run.step()
        if optimizer.info["bounces"] > count:
            seen.append(call)
            assert not moved.any()
            assert optimizer.info["momentum"] == pytest.approx(momentum, rel=1e-12)
    return seen


@pytest.mark.parametrize("bounce", ["cube", "isotropic"])
@pytest.mark.parametrize(
    ("every", "count", "expected"),
    [(5, 3, [5, 11, 17]), (1, 2, [1, 3]), (10, 1, [10]), (10, 0, [])],
)
def test_fixed_bounces_come_at_the_published_calls(every, count, expected, bounce):
    """T0, 2 T0 + 1, 3 T0 + 2, ...: a bounce takes a call of its own."""
    params = start()
    optimizer = BBI(
        params,
        lr=1e-3,
        bounce_every=every,
        fixed_bounces=count,
        patience=10**9,
        bounce=bounce,
    )
    assert bounces(optimizer, params, quadratic, 40) == expected


def test_the_released_code_bounces_once_without_fixed_bounces():
    params = start()
    optimizer = BBI(params, lr=1e-3, bounce_every=6, fixed_bounces=0, compat=True)
    assert bounces(optimizer, params, quadratic, 30) == [6]


def test_patience_counts_steps_without_a_new_minimum():
    params = start()
    optimizer = BBI(params, lr=1e-6, patience=4, fixed_bounces=0)
    calls = 0

    def rising(p):
        nonlocal calls
        calls += 1
        return quadratic(p) + 1e-3 * calls

    # the first call sets the minimum, four pass without one, the next bounces
    assert bounces(optimizer, params, rising, 12) == [5, 10]


@pytest.mark.parametrize("bounce", ["cube", "isotropic"])
def test_the_size_of_the_momentum_survives_a_bounce(bounce):
    """Seen from outside: the flat loss after the bounce moves it by the same length."""
    p = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = BBI(
        [p],
        lr=0.1,
        bounce_every=2,
        fixed_bounces=50,
        bounce=bounce,
        conserve_energy=False,
    )
    descend(optimizer, [p], lambda q: (q[0] ** 2).sum() / 2 + 1, 1)
    directions, lengths = [], []
    for _ in range(30):
        before = p.detach().clone()
        descend(optimizer, [p], lambda q: 3.0 + 0 * q[0].sum(), 1)
        moved = p.detach() - before
        if moved.any():
            lengths.append(float(moved.norm()))
            directions.append(moved / moved.norm())
    assert len(lengths) >= 20
    assert max(lengths) == pytest.approx(min(lengths), rel=1e-12)
    assert min(float(a @ directions[0]) for a in directions) < 0.5


def directions(bounce, count=4000):
    """Return the angles after bounces in two dimensions."""
    p = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    optimizer = BBI([p], bounce=bounce)
    optimizer.step(closure_of(optimizer, [p], lambda q: 1 + (q[0] ** 2).sum()))
    own = optimizer.param_groups[0]["system"]
    angles = []
    for step in range(count):
        own.update(steps=step, since_best=optimizer.param_groups[0]["patience"])
        assert optimizer.bounce(optimizer.particles[0], True)
        x, y = optimizer.vectors["momentum"].tolist()
        angles.append(math.atan2(y, x))
    return torch.tensor(angles)


@pytest.mark.parametrize(("bounce", "expected"), [("cube", 2.0), ("isotropic", 1.0)])
def test_only_cube_bounces_prefer_the_diagonals(bounce, expected):
    """The density in a square is 1/(2 cos²) of the angle to the nearest axis."""
    folded = directions(bounce).abs() % (math.pi / 2)
    width = 0.1
    diagonal = ((folded - math.pi / 4).abs() < width).sum().item()
    axes = ((folded < width) | (folded > math.pi / 2 - width)).sum().item()
    mean = 1.0
    if bounce == "cube":  # integrals of 1/cos² over the two windows
        near = math.tan(math.pi / 4) - math.tan(math.pi / 4 - width)
        mean = near / math.tan(width)
        assert mean == pytest.approx(expected, rel=0.12)
    error = 4 * mean * math.sqrt(1 / diagonal + 1 / axes)
    assert abs(diagonal / axes - mean) < error


@pytest.mark.parametrize("nu", [1e-3, 0.3, 3.0])
def test_rotation_keeps_the_size_of_the_momentum(nu):
    """On a flat loss without rescale nothing but the rotation acts."""
    p = torch.linspace(-1, 1, 10, dtype=torch.float64).requires_grad_()
    optimizer = ECDSep([p], lr=0.1, nu=nu, extra_energy=1.5, conserve_energy=False)
    descend(optimizer, [p], lambda q: 1 + (q[0] ** 2).sum(), 1)
    sizes, moves = [], []
    for _ in range(50):
        before = p.detach().clone()
        descend(optimizer, [p], lambda q: 2.0 + 0 * q[0].sum(), 1)
        sizes.append(optimizer.info["momentum"])
        moves.append(p.detach() - before)
    assert max(sizes) == pytest.approx(min(sizes), rel=1e-12)
    cosine = float(moves[0] @ moves[-1] / moves[0].norm() / moves[-1].norm())
    assert cosine < 1 - 1e-5


def test_the_angle_of_a_rotation_is_about_nu_root_n():
    n, nu = 2500, 1e-3
    p = torch.linspace(-1, 1, n, dtype=torch.float64).requires_grad_()
    optimizer = ECDSep([p], lr=0.1, nu=nu, extra_energy=1.0, conserve_energy=False)
    moves = []
    for i in range(3):
        before = p.detach().clone()
        flat = 0.0 if i else 1.0
        descend(optimizer, [p], lambda q, f=flat: 2.0 + f * (q[0] ** 2).sum(), 1)
        moves.append(p.detach() - before)
    cosine = float(moves[1] @ moves[2] / moves[1].norm() / moves[2].norm())
    assert math.acos(cosine) == pytest.approx(nu * math.sqrt(n), rel=0.1)


class NoDraws(Eager):
    """A body that cannot draw."""

    normals = None


def test_nu_of_zero_draws_nothing():
    params = start()
    optimizer = ECDSep(params, nu=0.0)
    optimizer.draw, optimizer.body_of = None, lambda x: NoDraws()
    descend(optimizer, params, quadratic, 20)


@pytest.mark.parametrize("extra", [0.0, 1.0])
@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_a_first_gradient_of_zero_is_no_nan(cls, extra):
    p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = cls([p], lr=0.1, extra_energy=extra)
    descend(optimizer, [p], lambda q: 1 + (q[0] ** 2).sum(), 10)
    assert p.isfinite().all()
    assert bool(p.any()) == bool(extra)


def test_a_zero_gradient_of_one_tensor_is_no_nan_in_compat():
    a, b = start(shapes=[(3,), (3,)])
    optimizer = BBI([a, b], lr=0.1, extra_energy=1.0, compat=True)
    untouched = b.detach().clone()
    descend(optimizer, [a, b], lambda p: quadratic(p[:1]) + 0 * p[1].sum(), 10)
    assert values([a]).isfinite().all()
    assert torch.equal(b.detach(), untouched)


@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_rests_at_or_below_f_min_and_counts(cls):
    params = start()
    optimizer = cls(params, lr=0.05, f_min=0.0)
    descend(optimizer, params, quadratic, 5)
    before, state = values(params), optimizer.state_dict()
    for low in (0.0, -3.0):
        descend(optimizer, params, lambda p, v=low: 0 * quadratic(p) + v, 2)
    assert torch.equal(values(params), before)
    assert optimizer.info["skipped"] == 4
    after = optimizer.state_dict()
    assert torch.equal(after["state"][0]["momentum"], state["state"][0]["momentum"])
    old, new = (s["param_groups"][0]["system"] for s in (state, after))
    changed = {key for key in old if old[key] != new[key]}
    assert changed == {"steps", "skipped", "resting"}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_warns_once_after_a_hundred_rests(cls, begun):
    params = start()
    optimizer = cls(params, f_min=-1.0 if begun else 1e6)
    if begun:
        descend(optimizer, params, quadratic, 3)
        optimizer.param_groups[0]["f_min"] = 1e6
    descend(optimizer, params, quadratic, 99)
    with pytest.warns(UserWarning, match="rested for 100 steps.*f_min = 1000000.0"):
        descend(optimizer, params, quadratic, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend(optimizer, params, quadratic, 150)
    assert optimizer.info["skipped"] == 250


def test_momentum_is_kept_where_v_exceeds_the_energy():
    """No momentum is on the shell there: the particle keeps the one it has."""
    params = start()
    optimizer = BBI(params, lr=1e-3, **never())
    descend(optimizer, params, quadratic, 5)
    momentum = optimizer.info["momentum"]
    descend(optimizer, params, lambda p: 1e3 + 0 * quadratic(p), 3)
    assert optimizer.info["unscaled"] == 3
    assert optimizer.info["momentum"] == pytest.approx(momentum, rel=1e-12)


def test_a_separable_particle_without_rest_starts_with_unit_momentum():
    for s in (0.0, 0.5):
        params = start()
        optimizer = ECDSep(params, lr=1e-9, s=s, nu=0.0)
        descend(optimizer, params, quadratic, 1)
        assert optimizer.info["momentum"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("extra", [0.0, 0.25, 4.0])
def test_the_first_momentum_has_squared_size_extra_energy(extra):
    params = start()
    optimizer = ECDSep(params, lr=1e-12, extra_energy=extra, nu=0.0)
    descend(optimizer, params, quadratic, 1)
    assert optimizer.info["momentum"] ** 2 == pytest.approx(extra, abs=1e-9)


def test_the_constructor_lr_holds_in_compat_separable_only():
    for compat in (False, True):
        params, others = start(), start()
        settings = {"nu": 0.0, "compat": compat}
        optimizer = ECDSep([{"params": params, "lr": 0.01}], lr=0.1, **settings)
        other = ECDSep(others, lr=0.1 if compat else 0.01, **settings)
        descend(optimizer, params, quadratic, 5)
        descend(other, others, quadratic, 5)
        assert torch.equal(values(params), values(others))


def test_the_threshold_is_tested_on_the_loss_not_on_its_power():
    for compat in (False, True):
        params = start()
        optimizer = ECDSep(params, lr=0.1, eta=5.0, compat=compat, extra_energy=1.0)
        descend(optimizer, params, lambda p: 1e-12 * quadratic(p), 3)
        assert optimizer.info["skipped"] == (3 if compat else 0)


@pytest.mark.parametrize("huge", [10**20, 10**25, 1e25])
def test_huge_numbers_of_steps_are_accepted(huge):
    params = start()
    optimizer = BBI(params, lr=0.01, bounce_every=huge, patience=huge)
    descend(optimizer, params, quadratic, 50)
    assert optimizer.info["bounces"] == 0
