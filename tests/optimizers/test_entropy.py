"""Entropy-SGD: against the published rules, torch's SGD and closed forms."""

import math

import pytest
import torch

from lightning_ecd.optimizers import HEAT, EntropySGD
from tests.cases import PROBLEMS, closure_of, descend, quadratic, start, values
from tests.optimizers.minibatches import Taped, tape
from tests.reference import entropy

COMMON = {"lr": 0.5, "inner_steps": 5, "inner_lr": 0.02, "gamma": 0.3, "scoping": 0.05}
NAMES = {
    **{"lr": "lr", "momentum": "m", "dampening": "d", "weight_decay": "wd"},
    **{"nesterov": "nesterov", "inner_steps": "L", "inner_lr": "llr"},
    **{"gamma": "g0", "scoping": "g1", "noise": "eps", "gamma_max": "cap"},
    **{"rho": "rho", "alpha": "alpha", "gamma_in_outer": "literal"},
}
RULES = {
    "default": (entropy.Lua, {"cap": 50.0}),
    "lua": (entropy.Lua, {}),
    "python": (entropy.Python, {}),
    "paper": (entropy.Paper, {}),
    "hj": (entropy.HJ, {}),
}


def deviation(settings, problem, steps=60):
    """Return the largest relative difference between fast and slow trajectory."""
    kind, more = RULES[settings.get("preset", "default")]
    defaults = {"m": 0.9, "d": 0.0, "wd": 0.0, "nesterov": True, "eps": 1e-4}
    own = {NAMES[k]: v for k, v in settings.items() if k in NAMES}
    fast, slow = start(), start()
    copies = [x.detach() for x in slow]
    rule = kind(copies, {**defaults, **more, **own}, tape())
    optimizer = EntropySGD(fast, diagnostics_every=0, **settings)  # they draw, too
    recorded = Taped()
    optimizer.body_of = lambda x: recorded
    closure, loss = closure_of(optimizer, fast, PROBLEMS[problem]), PROBLEMS[problem]

    def evaluate():
        leaves = [x.clone().requires_grad_() for x in copies]
        value = loss(leaves)
        return value.item(), list(torch.autograd.grad(value, leaves))

    skip = {"skip": True} if settings.get("preset", "default") == "default" else {}
    worst = 0.0
    for _ in range(steps):
        a, b = optimizer.step(closure).item(), rule.step(evaluate, **skip)
        x, y = values(fast), values(copies)
        worst = max(worst, float((x - y).norm() / y.norm()), abs(a - b) / abs(b))
    return worst


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"weight_decay": 1e-2},
        {"momentum": 0.0, "weight_decay": 1e-2},
        {"nesterov": False, "dampening": 0.3},
        {"noise": 0.0},
        {"inner_steps": 1},
    ],
    ids=["noise", "decay", "no_momentum", "heavy_ball", "no_noise", "one_step"],
)
@pytest.mark.parametrize("preset", RULES)
def test_equals_the_published_rule(preset, more, problem):
    if preset == "hj" and ("nesterov" in more):
        more = {}  # its rule knows Nesterov's momentum only
    settings = {**COMMON, "noise": 1e-2, "preset": preset, **more}
    if preset in ("python", "hj"):  # outer momentum
        settings["lr"] = 0.05
    assert deviation(settings, problem) < 1e-12


@pytest.mark.parametrize(
    ("preset", "more"),
    [
        ("hj", {"lr": 0.1, "rho": 0.2}),
        ("paper", {"gamma_in_outer": True}),
        ("default", {"gamma_max": 0.7}),
        ("python", {"lr": 0.01, "inner_steps": 0}),
    ],
    ids=["mixture", "literal", "capped", "python_sgd"],
)
def test_switches_equal_the_published_rule(preset, more):
    settings = {**COMMON, "noise": 1e-2, "preset": preset, **more}
    assert deviation(settings, "rosenbrock") < 1e-12


@pytest.mark.parametrize("preset", ["default", "lua", "paper", "hj"])
@pytest.mark.parametrize(
    "base",
    [
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "nesterov": False, "dampening": 0.3},
        {"momentum": 0.0, "nesterov": False, "weight_decay": 1e-2},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 1e-2},
    ],
    ids=["nesterov", "dampened", "plain", "decay"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_inner_steps_it_is_torch_sgd_to_the_bit(preset, base, dtype):
    ours, torchs = start(dtype), start(dtype)
    fast = EntropySGD(ours, lr=0.05, inner_steps=0, preset=preset, **base)
    descend(fast, ours, quadratic, 50)
    descend(torch.optim.SGD(torchs, lr=0.05, **base), torchs, quadratic, 50)
    assert torch.equal(values(ours), values(torchs))


def proximal_point(curvature, b, gamma, x):
    """(A + γ I)⁻¹ (b + γ x) for f = ½ x'Ax - b'x with diagonal A."""
    return (b + gamma * x) / (curvature + gamma)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"momentum": 0.0}, 1.0),
        ({"momentum": 0.5, "force_in_momentum": True}, 1.0),
        # only the gradient goes through the momentum: relative to f the scope is less
        ({"momentum": 0.5}, 0.5),
    ],
    ids=["no_momentum", "force_inside", "force_outside"],
)
def test_the_mean_of_long_explorations_is_the_proximal_point(settings, factor):
    curvature = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    b, gamma = torch.linspace(-1, 1, 6, dtype=torch.float64), 0.8
    x = torch.full((6,), 0.7, dtype=torch.float64, requires_grad=True)
    expected = proximal_point(curvature, b, factor * gamma, x.detach())
    optimizer = EntropySGD(
        [x], lr=1.0, inner_steps=2000, gamma=gamma, scoping=0.0, noise=0.0, **settings
    )

    def loss(params):
        (x,) = params
        return (0.5 * curvature * x**2 - b * x).sum()

    descend(optimizer, [x], loss, 1)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


def test_explorations_have_the_stationary_law_of_langevin_dynamics():
    """Variance ε²/(K - η' K²/2) with K = A + γ, around the proximal point."""
    lr, noise, gamma, runs = 0.2, 0.5, 0.5, 20000
    x = torch.zeros(runs, dtype=torch.float64, requires_grad=True)
    optimizer = EntropySGD(
        [x],
        lr=1.0,
        momentum=0.0,
        inner_steps=60,
        inner_lr=lr,
        gamma=gamma,
        scoping=0.0,
        noise=noise,
        alpha=1.0,  # the mean is the last point
    )
    descend(optimizer, [x], lambda params: (params[0] ** 2 - params[0]).sum(), 1)
    K = 2 + gamma
    variance = noise**2 / (K - lr * K**2 / 2)
    points = x.detach()
    # four standard errors
    assert abs(points.var().item() / variance - 1) < 4 * math.sqrt(2 / runs)
    assert abs(points.mean().item() - 1 / K) < 4 * math.sqrt(variance / runs)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1]),
        ("exponential", [0.15, 0.225, 0.3375]),
        ("linear", [0.15, 0.2, 0.25]),
        ("quadratic", [0.15, 0.3, 0.55]),
        ("bounded", [0.1 * (1 - math.exp(-0.5 * t)) for t in (1, 2, 3)]),
    ],
)
def test_the_scope_follows_its_schedule_up_to_the_cap(schedule, expected):
    for cap in (math.inf, 0.2):
        params = start()
        settings = {**COMMON, "gamma": 0.1, "scoping": 0.5, "gamma_max": cap}
        optimizer = EntropySGD(params, scope_schedule=schedule, **settings)
        for gamma in expected:
            descend(optimizer, params, quadratic, 1)
            assert optimizer.info["gamma"] == pytest.approx(min(gamma, cap))


def test_the_default_cap_is_one_over_the_inner_step():
    params = start()
    optimizer = EntropySGD(params, **{**COMMON, "scoping": 1e6})
    descend(optimizer, params, quadratic, 60)
    assert optimizer.info["gamma"] == pytest.approx(1 / 0.02)


def test_what_is_unstable_is_said_once():
    params = start()
    settings = {**COMMON, "gamma": 200.0, "gamma_max": 1e3, "inner_steps": 1}
    with pytest.warns(UserWarning, match="keep gamma below 100$") as seen:
        descend(EntropySGD(params, **settings), params, quadratic, 2)
    assert len(seen) == 1
    params = start()
    optimizer = EntropySGD(params, **{**COMMON, "preset": "python", "lr": 0.3})
    with pytest.warns(UserWarning, match="outer move is 3, .* lower lr or this"):
        descend(optimizer, params, quadratic, 1)
    params = start()  # momentum 0.9 within: stable below 3.8/2.8/0.1
    with pytest.warns(UserWarning, match="keep gamma below 13.6$"):
        descend(HEAT(params, gamma=20.0, inner_steps=1), params, quadratic, 1)


def test_groups_explore_by_as_many_steps():
    a, b, *_ = start()
    groups = [{"params": [a]}, {"params": [b], "inner_steps": 3}]
    with pytest.raises(ValueError, match="inner_steps must be 5 in all groups, got 3"):
        EntropySGD(groups, **COMMON)


def test_diagnostics_are_those_of_the_step():
    """Without momentum and noise, one step: x' = x - η' g, μ = x - α η' g."""
    params = start()
    gradient = torch.autograd.grad(quadratic(params), params)
    norm = values(gradient).norm().item()
    settings = {"inner_steps": 1, "momentum": 0.0, "noise": 0.0, "inner_lr": 0.1}
    optimizer = EntropySGD(params, diagnostics_every=2, **settings)
    descend(optimizer, params, quadratic, 1)
    assert set(optimizer.info) == {"gamma"}
    gradient = torch.autograd.grad(quadratic(params), params)
    norm = values(gradient).norm().item()
    descend(optimizer, params, quadratic, 1)
    info = optimizer.info
    assert info["gradient"] == pytest.approx(norm)
    assert info["displacement"] == pytest.approx(0.25 * 0.1 * norm)
    assert info["cosine"] == pytest.approx(1.0)
    assert info["excursion"] == pytest.approx(0.1 * norm)
    assert info["matched_gamma"] == pytest.approx(40.0)
    assert info["noise"] == 0


def test_matching_makes_both_gradients_equally_long():
    """On f = ½ A |x|² with momentum m: |x - μ| = |∇f|/(A + (1 - m) γ), so γ = A/m."""
    A, m = 2.0, 0.5
    x = torch.full((6,), 0.7, dtype=torch.float64, requires_grad=True)
    settings = {"momentum": m, "noise": 0.0, "match_norm": True, "lr": 1e-3}
    optimizer = EntropySGD([x], inner_steps=400, diagnostics_every=1, **settings)
    descend(optimizer, [x], lambda params: 0.5 * A * (params[0] ** 2).sum(), 40)
    assert optimizer.info["gamma"] == pytest.approx(A / m)
    assert optimizer.info["matched_gamma"] == pytest.approx(A / m)
