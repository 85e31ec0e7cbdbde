"""The relatives of Entropy-SGD: transcriptions and laws."""

import math

import pytest
import torch

from lightning_ecd.optimizers import (
    FP,
    HEAT,
    HJB,
    REGISTRY,
    SAM,
    SGLD,
    ElasticSGD,
    EntropyAdam,
    EntropyECD,
    EntropySGD,
    EntropySGLD,
    Lookahead,
    Parle,
)
from tests.cases import PROBLEMS, descend, quadratic, start, values
from tests.optimizers.minibatches import Batches, Taped, deviation, tape
from tests.optimizers.test_entropy import proximal_point
from tests.reference import entropy, relatives

BASE = {"m": 0.9, "d": 0.0, "wd": 1e-2, "nesterov": True, "L": 4, "eps": 0.0}
WD = {"weight_decay": 1e-2}


#: Label -> optimizer, its arguments, transcription, its settings, arguments of a step.
SAME = {
    "adam": (
        "EntropyAdam",
        {"lr": 0.05, "inner_steps": 4, "inner_lr": 0.02, "gamma": 0.3, "noise": 0.1}
        | {"scoping": 0.05, "rho": 0.2, "lr_decay": 0.01, "gamma_max": 0.7, **WD},
        relatives.Adam,
        {"lr": 0.05, "llr": 0.02, "g0": 0.3, "g1": 0.05, "cap": 0.7, "eps": 0.1}
        | {"b1": 0.9, "b2": 0.999, "delta": 1e-8, "rho": 0.2, "lrd": 0.01}
        | {"alpha": 0.25},
        (True,),
    ),
    "adams_rate": (
        "EntropyAdam",
        {"lr": 0.02, "inner_steps": 4, "gamma": 0.3, "noise": 0.1, "scoping": 0.0}
        | {"betas": (0.5, 0.99), "eps": 1e-6, "skip_first_eval": False, **WD},
        relatives.Adam,
        {"lr": 0.02, "llr": None, "g0": 0.3, "g1": 0.0, "eps": 0.1, "lrd": 0.0}
        | {"b1": 0.5, "b2": 0.99, "delta": 1e-6, "rho": 0.0, "alpha": 0.25},
        (False,),
    ),
    "adam_alone": (
        "EntropyAdam",
        {"lr": 0.05, "inner_steps": 0, "noise": 0.0, **WD},
        relatives.Adam,
        {"lr": 0.05, "llr": None, "g0": 0.0, "g1": 0.0, "L": 0, "lrd": 0.0}
        | {"b1": 0.9, "b2": 0.999, "delta": 1e-8},
        (True,),
    ),
    "hjb": (
        "HJB",
        {"lr": 0.05, "inner_steps": 4, "inner_lr": 0.02, "gamma": 0.3, "noise": 0.1}
        | {"scoping": 0.05, **WD},
        entropy.HJ,
        {"lr": 0.05, "llr": 0.02, "g0": 0.3, "g1": 0.05, "alpha": 1 - 1e-4}
        | {"eps": 0.1},
        (),
    ),
    "heat": (
        "HEAT",
        {"lr": 0.05, "inner_steps": 4, "inner_lr": 0.02, "gamma": 3.0, "noise": 0.1}
        | WD,
        entropy.HJ,
        {"lr": 0.05, "llr": 0.02, "g0": 3.0, "g1": 0.0, "eps": 0.1}
        | {"alpha": lambda inner: 1 / (inner + 2)},
        (),
    ),
    "sgld": (
        "SGLD",
        {"lr": 0.05, "noise": 0.1, "power": 0.3, **WD},
        relatives.Langevin,
        {"lr": 0.05, "b": 0.3, "eps": 0.1},
        (),
    ),
    "fp": (
        "FP",
        {"lr": 0.02, "momentum": 0.8, "inner_steps": 3, "scoping": 0.01, **WD},
        relatives.FixedPoint,
        {"lr": 0.02, "m": 0.8, "L": 3, "g0": 10.0, "g1": 0.01},
        (),
    ),
    "prox": (
        "ProxSGD",
        {"lr": 0.02, "inner_steps": 4, "gamma": 0.5, "scoping": 0.1, **WD},
        relatives.Prox,
        {"lr": 0.02, "g0": 0.5, "g1": 0.1, "cap": 1.0},
        (),
    ),
    "parle": (
        "Parle",
        {"lr": 0.05, "inner_steps": 3, "inner_lr": 0.02, "gamma": 0.1, "rho": 0.3}
        | {"scoping": 0.1, "rho_max": 0.7, "alpha": 0.6, "gamma_max": 0.4, **WD},
        relatives.Replicas,
        {"lr": 0.05, "L": 3, "llr": 0.02, "g0": 0.1, "g1": 0.1, "cap": 0.4, "n": 3}
        | {"rho0": 0.3, "rho_cap": 0.7, "beta": 0.4},
        (),
    ),
    "elastic": (
        "ElasticSGD",
        {"lr": 0.01, "replicas": 2, "rho": 0.5, "scoping": 0.1, **WD},
        relatives.Replicas,
        {"lr": 0.01, "L": 0, "llr": 0.1, "g0": 0.0, "g1": 0.1, "cap": 1.0, "n": 2}
        | {"rho0": 0.5, "rho_cap": 10.0, "beta": 0.0},
        (),
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("label", SAME)
def test_equals_the_transcription(label, problem):
    name, settings, rule, numbers, arguments = SAME[label]
    params, copies = start(), [p.detach() for p in start()]
    optimizer = REGISTRY[name].cls(params, **settings)
    for group in optimizer.param_groups:
        if "diagnostics_every" in group:  # they draw, too
            group["diagnostics_every"] = 0
    body = Taped()
    optimizer.body_of = lambda x: body
    slow = rule(copies, {**BASE, **numbers}, tape())
    assert deviation(optimizer, slow, copies, params, problem, arguments) < 1e-12


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_lookahead_keeps_a_part_of_torchs_steps(nesterov, problem):
    fast = {"momentum": 0.8, "nesterov": nesterov, "weight_decay": 1e-2}
    params, copies = start(), [p.detach() for p in start()]
    optimizer = Lookahead(params, lr=0.6, inner_steps=3, inner_lr=0.02, **fast)
    inner = {"lr": 0.02, **fast}
    slow = relatives.Slow(copies, {"lr": 0.6, "L": 3, "inner": inner}, tape())
    assert deviation(optimizer, slow, copies, params, problem) < 1e-12


def bowl(curvature, b):
    """½ x'Ax - b'x with diagonal A, of one parameter."""
    return lambda params: (0.5 * curvature * params[0] ** 2 - b * params[0]).sum()


def bowl_of_six():
    curvature = torch.linspace(0.5, 3.0, 6, dtype=torch.float64)
    b = torch.linspace(-1, 1, 6, dtype=torch.float64)
    x = torch.full((6,), 0.7, dtype=torch.float64, requires_grad=True)
    return curvature, b, x


def test_hjb_goes_to_the_proximal_point():
    curvature, b, x = bowl_of_six()
    expected = proximal_point(curvature, b, 0.8, x.detach())
    settings = {"lr": 1.0, "momentum": 0.5, "gamma": 0.8, "noise": 0.0}
    optimizer = HJB([x], inner_steps=500, **settings)
    optimizer.param_groups[0]["outer_momentum"] = 0.0
    descend(optimizer, [x], bowl(curvature, b), 1)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-3, atol=1e-3)


def test_heat_smooths_by_a_gaussian():
    """A stiff spring: x' is nearly normal around x, of variance ε²/(γ - η'γ²/2)."""
    gamma, noise, lr, n = 20.0, 0.5, 0.02, 20000
    x = torch.full((n,), 1.0, dtype=torch.float64, requires_grad=True)
    settings = {"momentum": 0.0, "inner_lr": lr, "gamma": gamma, "noise": noise}
    optimizer = HEAT([x], lr=1.0, inner_steps=40, **settings)
    optimizer.param_groups[0]["diagnostics_every"] = 1
    descend(optimizer, [x], lambda params: 0.0 * params[0].sum(), 1)
    variance = noise**2 / (gamma - lr * gamma**2 / 2)
    # the mean excursion of 40 steps from rest, the first few of which warm up
    decay = 1 - lr * gamma
    grown = [variance * (1 - decay ** (2 * step)) for step in range(1, 41)]
    expected = sum(math.sqrt(n * v) for v in grown) / 40
    assert optimizer.info["excursion"] == pytest.approx(expected, rel=0.02)


def test_a_group_of_entropy_adam_explores_by_its_own_inner_step():
    """Of a sum of losses every group sees its own: it moves as if it were alone."""
    settings = {"lr": 0.1, "noise": 0.0, "inner_steps": 4}
    own = [{}, {"inner_lr": 0.02, "eps": 1e-3, "betas": (0.5, 0.9)}]
    params, alone = start(shapes=[(6,), (6,)]), start(shapes=[(6,), (6,)])
    groups = [{"params": [p], **each} for p, each in zip(params, own, strict=True)]

    def loss(params):
        return sum((p**4).sum() for p in params)

    descend(EntropyAdam(groups, **settings), params, loss, 5)
    for p, x, each in zip(params, alone, own, strict=True):
        descend(EntropyAdam([x], **settings, **each), [x], loss, 5)
        torch.testing.assert_close(p, x, rtol=1e-13, atol=1e-13)


def test_fp_solves_the_implicit_equation():
    """p = A (x - p/γ) - b, so p = (1 + A/γ)⁻¹ (A x - b)."""
    curvature, b, x = bowl_of_six()
    gamma, lr, before = 10.0, 0.1, x.detach().clone()
    optimizer = FP([x], lr=lr, inner_steps=200, gamma=gamma)
    descend(optimizer, [x], bowl(curvature, b), 1)
    p = (curvature * before - b) / (1 + curvature / gamma)
    torch.testing.assert_close(x.detach(), before - lr * p, rtol=1e-12, atol=1e-12)


def test_fp_becomes_explicit_when_its_scope_has_outgrown_every_number():
    """1.5^3000 is beyond float64: p = ∇f(x - p/γ) then is ∇f(x)."""
    curvature, b, x = bowl_of_six()
    optimizer, before = FP([x], lr=0.1, scoping=0.5), x.detach().clone()
    optimizer.system["steps"] = 3000
    descend(optimizer, [x], bowl(curvature, b), 1)
    expected = before - 0.1 * (curvature * before - b)
    torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", ["separable", "constant_speed"])
def test_energy_conserving_exploration_has_the_proximal_point_as_its_mean(dynamics):
    curvature, b, x = bowl_of_six()
    gamma = 0.8
    expected = proximal_point(curvature, b, gamma, x.detach())
    lowest = (0.5 * curvature * expected**2 - b * expected).sum().item()
    lowest += 0.5 * gamma * ((expected - x.detach()) ** 2).sum().item()
    optimizer = EntropyECD(
        [x],
        lr=1.0,
        inner_steps=20_000,
        inner_lr=0.05,
        gamma=gamma,
        scoping=0.0,
        dynamics=dynamics,
        eta=3.0,  # else its density falls too slowly to have a mean
        f_min=lowest - 0.2,
        extra_energy=1.0,
        nu=0.3,
    )
    descend(optimizer, [x], bowl(curvature, b), 1)
    away = (x.detach() - expected).norm() / expected.norm()
    assert away < 0.1  # a chain of correlated points
    assert optimizer.info["gamma"] == pytest.approx(gamma)


def test_energy_conserving_exploration_stays_on_its_energy_shell():
    """V (1 + |p|²) = E at every point, up to the step size."""
    curvature, b, x = bowl_of_six()
    optimizer = EntropyECD([x], inner_steps=50, f_min=-3.0, extra_energy=1.0)
    seen = []
    move = optimizer._move

    def watched(particle, H, V, live, step):
        seen.append((V, particle.own["p2"], optimizer._energy))
        return move(particle, H, V, live, step)

    optimizer._move = watched
    descend(optimizer, [x], bowl(curvature, b), 1)
    ratios = [V * (1 + p2) / E for V, p2, E in seen]
    assert len(ratios) == 50
    assert all(abs(ratio - 1) < 0.05 for ratio in ratios)


def test_sgld_cools_down_without_noise_to_a_plain_descent():
    params, others = start(), start()
    descend(SGLD(params, lr=0.05, noise=0.0, power=0.0), params, quadratic, 30)
    descend(torch.optim.SGD(others, lr=0.05), others, quadratic, 30)
    torch.testing.assert_close(values(params), values(others), rtol=1e-13, atol=1e-13)


def test_sgld_samples_the_gibbs_distribution():
    """On ½ A x² the variance is ε²/(A - η A²/2), of independent chains."""
    A, lr, noise, n = 2.0, 0.1, 0.5, 20000
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = SGLD([x], lr=lr, noise=noise, power=0.0)
    descend(optimizer, [x], lambda params: 0.5 * A * (params[0] ** 2).sum(), 60)
    expected = noise**2 / (A - lr * A**2 / 2)
    assert abs(x.detach().var().item() / expected - 1) < 4 * math.sqrt(2 / n)


def test_entropy_sgld_diffuses_by_its_temperature():
    """On a flat loss one step spreads x by √(2 η T), exploration apart."""
    n, lr, T = 20000, 0.5, 0.3
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    optimizer = EntropySGLD([x], lr=lr, temperature=T, inner_steps=2, noise=0.0)
    descend(optimizer, [x], lambda params: 0.0 * params[0].sum(), 1)
    variance = x.detach().var().item()
    assert abs(variance / (2 * lr * T) - 1) < 4 * math.sqrt(2 / n)


def test_one_replica_without_pull_is_entropy_sgd():
    """Parle with n = 1 and ρ = 0 is preset "hj" without noise, μ the last point."""
    common = {"lr": 0.05, "inner_steps": 4, "inner_lr": 0.02, "gamma": 0.3}
    common |= {"scoping": 0.0, "weight_decay": 1e-2}
    alone, single = start(), start()
    parle = Parle(alone, replicas=1, rho=0.0, **common)
    same = {"preset": "hj", "alpha": 1.0, "noise": 0.0, "skip_first_eval": True}
    descend(parle, alone, quadratic, 40)
    descend(EntropySGD(single, **common, **same), single, quadratic, 40)
    torch.testing.assert_close(values(alone), values(single), rtol=1e-12, atol=1e-12)


def test_replicas_meet_when_the_pull_is_strong():
    params = start()
    optimizer = ElasticSGD(params, lr=0.05, momentum=0.0, rho=10.0)
    descend(optimizer, params, Batches("quadratic"), 30)
    near = optimizer.info["spread"]
    others = start()
    free = ElasticSGD(others, lr=0.05, momentum=0.0, rho=0.0)
    descend(free, others, Batches("quadratic"), 30)
    assert 0 < near < 0.6 * free.info["spread"]


def test_a_parameter_that_joins_in_mid_run_joins_all_replicas():
    a, b = start(shapes=[(6,), (4,)])
    optimizer = Parle([a], replicas=2, inner_steps=2, inner_lr=0.02, lr=0.05, rho=0.3)
    descend(optimizer, [a], Batches("quadratic"), 3)
    before = values([b])
    optimizer.add_param_group({"params": [b]})
    loss = Batches("quadratic")
    descend(optimizer, [a, b], loss, 1)
    assert (values([b]) - before).norm() < 0.5 * before.norm()


def test_a_checkpoint_of_other_replicas_is_refused():
    params = start()
    optimizer = ElasticSGD(params, lr=0.02, replicas=3)
    descend(optimizer, params, quadratic, 2)
    saved = optimizer.state_dict()
    del saved["state"][0]["offset_2"]
    with pytest.raises(ValueError, match="has 2 replicas, 3 on each of 1 ranks"):
        ElasticSGD(start(), lr=0.02, replicas=3).load_state_dict(saved)


def test_a_failed_evaluation_leaves_the_parameters_where_they_were():
    for cls in (EntropySGD, SAM, FP, Parle):
        params = start()
        optimizer = cls(params, lr=0.02)
        descend(optimizer, params, quadratic, 2)
        before, calls = values(params), []

        def breaks(p, calls=calls):
            calls.append(1)
            return quadratic(p) * (float("nan") if len(calls) > 1 else 1.0)

        with pytest.raises(Exception, match="loss is nan"):
            descend(optimizer, params, breaks, 1)
        assert len(calls) == 2
        assert torch.equal(values(params), before)
