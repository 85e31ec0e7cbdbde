"""Rules against their slow transcriptions; counts; what they promise."""

import numpy as np
import pytest
import torch

from lightning_ecd.flat import Layout
from lightning_ecd.rules import (
    RULES,
    Context,
    HNNRule,
    LSTMRule,
    PortHamiltonianRule,
    SmallFCRule,
)
from lightning_ecd.rules.features import log_and_sign
from lightning_ecd.rules.port_hamiltonian import Coefficients, _quotient, _root
from tests.reference import meta_training
from tests.reference import rules as slow

LAYOUT = Layout(((3, 4), (5,), (1,), (2, 3, 4)))
N = sum(LAYOUT.sizes)
SETTINGS = {
    "HNNRule": [{}, {"preproc": True}, {"norm": True}, {"preproc": True, "norm": True}],
    "LSTMRule": [{}, {"preproc": True}, {"hidden": 5}],
    "PortHamiltonianRule": [{}, {"hidden": 4}, {"integrator": "semi_implicit"}],
    "SmallFCRule": [{}, {"hidden": 7, "step_mult": 0.01}],
}
ALL = [(name, settings) for name, some in SETTINGS.items() for settings in some]


def made(name, settings, seed=0, spread=0.0):
    """Return a rule in float64, its weights moved away from where they start."""
    torch.manual_seed(seed)
    rule = RULES[name](**settings).double()
    with torch.no_grad():
        for w in rule.parameters():
            w.add_(torch.randn_like(w) * spread)
    return rule


def context(x, step=0, layout=LAYOUT):
    lead = x.shape[:-1]
    return Context(x, torch.zeros(lead), torch.full(lead, float(step)), layout)


def gradients(steps, *lead, seed=1):
    """Return gradients of very different sizes (steps, ..., N)."""
    torch.manual_seed(seed)
    shape = (steps, *lead, N)
    return torch.randn(shape).double() * 10 ** (4 * torch.rand(shape).double() - 4)


def rolled(rule, grads, x=None, lr=0.01):
    """Return the updates of a chain of steps, and the last state."""
    x = torch.zeros_like(grads[0]) if x is None else x
    state, updates = rule.initial(x, LAYOUT), []
    for step, grad in enumerate(grads):
        u, state = rule(grad, state, context(x, step))
        updates.append(u)
        x = x + lr * u
    return torch.stack(updates), state


def arrays(rule):
    return {name: w.detach().numpy() for name, w in rule.state_dict().items()}


def test_every_rule_has_settings_here():
    assert set(SETTINGS) == set(RULES)


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (HNNRule(), 19),
        (HNNRule(preproc=True), 55),
        (LSTMRule(), 5221),
        (LSTMRule(preproc=True), 5301),
        (SmallFCRule(), 39 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2 + 7),
    ],
    ids=["hnn", "hnn 2", "lstm", "lstm 2", "small_fc"],
)
def test_counts_of_weights(rule, count):
    assert sum(w.numel() for w in rule.parameters()) == count


@pytest.mark.parametrize("d", [1, 2])
def test_names_and_shapes_are_those_of_the_released_code(d):
    pairs = (
        (HNNRule(preproc=d == 2), slow.hnn_shapes(d)),
        (LSTMRule(preproc=d == 2), slow.lstm_shapes(d)),
    )
    for rule, table in pairs:
        found = {name: tuple(w.shape) for name, w in rule.state_dict().items()}
        assert found == {name: tuple(shape) for name, (shape, _) in table.items()}


@pytest.mark.parametrize("d", [1, 2])
def test_initial_weights_fill_the_intervals_of_the_released_code(d):
    torch.manual_seed(0)
    kinds = (
        (lambda: HNNRule(preproc=d == 2), slow.hnn_shapes(d), 300),
        (lambda: LSTMRule(preproc=d == 2), slow.lstm_shapes(d), 30),
    )
    for make, table, draws in kinds:
        drawn = [make().state_dict() for _ in range(draws)]
        for name, (_, bound) in table.items():
            entries = torch.stack([weights[name] for weights in drawn]).abs()
            assert 0.95 * bound < entries.max() <= bound * (1 + 1e-6), name
            assert entries.mean() == pytest.approx(bound / 2, rel=0.15), name


def test_features_equal_the_formula():
    x = np.array([0.0, 1e-12, -1e-6, 4.5e-5, 4.6e-5, -3e-3, 1.0, -250.0])
    found = log_and_sign(torch.from_numpy(x)).numpy()
    assert np.abs(found - slow.features(x)).max() < 1e-12
    in_front = log_and_sign(torch.from_numpy(x), dim=0)
    assert np.abs(in_front.numpy() - slow.features(x).T).max() < 1e-12
    assert log_and_sign(torch.tensor([float("nan")])).isnan().any()


def test_features_have_the_slopes_of_the_formula():
    x = torch.tensor([2e-3, -0.5, 1e-6], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_and_sign(x).sum(), x)
    size = x.detach().abs() + 1e-8
    expected = [1 / (10 * size[0]), -1 / (10 * size[1]), torch.exp(torch.tensor(10.0))]
    assert slope.tolist() == pytest.approx([float(e) for e in expected], rel=1e-6)


@pytest.mark.parametrize("settings", SETTINGS["HNNRule"], ids=str)
def test_hnn_equals_the_transcription(settings):
    rule = made("HNNRule", {**settings, "epsilon": 0.0})
    grads, weights = gradients(100), arrays(rule)
    found, _ = rolled(rule, grads)
    state = np.zeros(N)
    for grad, u in zip(grads.numpy(), found.detach().numpy(), strict=True):
        factor = 10.0 if settings.get("preproc") else None
        expected, state = slow.hnn(
            weights, grad, state, factor, settings.get("norm", False), LAYOUT.sizes
        )
        assert np.abs(u - expected).max() <= 1e-11 * np.abs(expected).max()


@pytest.mark.parametrize("preproc", [False, True])
def test_lstm_equals_the_transcription(preproc):
    rule = made("LSTMRule", {"preproc": preproc})
    grads, weights = gradients(100), arrays(rule)
    found, _ = rolled(rule, grads)
    state = tuple(np.zeros((N, 20)) for _ in range(4))
    for grad, u in zip(grads.numpy(), found.detach().numpy(), strict=True):
        expected, state = slow.lstm(weights, grad, state, 10.0 if preproc else None)
        assert np.abs(u - expected).max() < 1e-12


@pytest.mark.parametrize(("name", "settings"), ALL[:7], ids=str)
def test_slopes_equal_those_of_the_transcription(name, settings):
    rule, grads = made(name, settings, spread=0.1), gradients(6)
    torch.manual_seed(2)
    goal = torch.randn(6, N).double()
    options = {"factor": 10.0 if settings.get("preproc") else None}
    if name == "HNNRule":
        step, state = meta_training.hnn_step, torch.zeros(N).double()
        options |= {"norm": settings.get("norm", False), "sizes": LAYOUT.sizes}
        options["state_grad"] = True
    else:
        step = meta_training.lstm_step
        state = tuple(torch.zeros(N, rule.hidden).double() for _ in range(4))
    weights, updates = dict(rule.named_parameters()), []
    for grad in grads:
        u, state = step(weights, grad, state, **options)
        updates.append(u)
    slopes = [
        torch.autograd.grad((u * goal).sum(), rule.parameters(), allow_unused=True)
        for u in (rolled(rule, grads)[0], torch.stack(updates))
    ]
    for key, found, expected in zip(weights, *slopes, strict=True):
        assert (found is None) == (expected is None) == (key == "gde.L.bias"), key
        if found is not None:
            off = (found - expected).abs().max()
            assert off <= 1e-10 * (1e-3 + expected.abs().max()), key


def test_small_fc_equals_the_transcription():
    rule = made("SmallFCRule", {}, spread=0.05)
    with torch.no_grad():
        for name, delta in rule.decays.items():
            delta.copy_(torch.linspace(-0.1, 0.1, len(delta)))
            assert name in ("m", "v", "factored")
    weights = arrays(rule)
    deltas = {name: weights[f"decays.{name}"] for name in ("m", "v", "factored")}
    x, state = torch.randn(N).double(), slow.small_fc_initial(LAYOUT.shapes)
    fast_state = rule.initial(x, LAYOUT)
    for step, grad in enumerate(gradients(30)):
        params = [p.numpy() for p in LAYOUT.views(x)]
        parts = [g.numpy() for g in LAYOUT.views(grad)]
        moves, state = slow.small_fc(weights, params, parts, state, step, deltas)
        u, fast_state = rule(grad, fast_state, context(x, step))
        for fast, move in zip(LAYOUT.views(u.detach()), moves, strict=True):
            assert np.abs(fast.numpy() - move).max() < 1e-12
        x = x + u.detach()


def parameters_of(rule):
    """Return the coefficients of a port-Hamiltonian rule for its transcription."""
    a, b, c, m = torch.nn.functional.softplus(rule.energy.detach()).numpy()
    rest = {"s": rule.s, "B": rule.B, "G": rule.G}
    numbers = {name: w.detach().numpy() for name, w in rest.items()}
    return {"a": a, "b": b, "c": c, "m": m, **numbers}


@pytest.mark.parametrize("integrator", ["discrete_gradient", "semi_implicit"])
def test_port_hamiltonian_equals_the_transcription(integrator):
    settings = {"integrator": integrator, "modes": 3}
    rule = made("PortHamiltonianRule", settings, spread=0.3)
    parameters, h = parameters_of(rule), rule.log_h.exp().item()
    grads = gradients(20)[:, :4]
    x = torch.zeros(4).double()
    state = rule.initial(x, LAYOUT)
    q, p = np.zeros((4, 3)), np.zeros((4, 3))
    for grad in grads:
        u, state = rule(grad, state, context(x))
        for i, y in enumerate(-grad.numpy()):
            expected, q[i], p[i] = slow.phnn_step(
                parameters, q[i], p[i], y, h, integrator == "semi_implicit"
            )
            assert u[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-11)
        assert np.abs(state["q"].detach().numpy() - q).max() < 1e-9


@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize("h", [1e-2, 1.0, 30.0])
def test_the_energy_balance_of_the_discrete_gradient_is_exact(hidden, h):
    """H' - H = u y - h dH' R dH, and H never rises without input."""
    rule = made("PortHamiltonianRule", {"hidden": hidden, "modes": 3}, spread=1.0)
    with torch.no_grad():
        rule.log_h.fill_(np.log(h))
    x = torch.zeros(N).double()
    state = rule.initial(x, LAYOUT)
    for number, grad in enumerate(gradients(60) * 10):
        grad = grad if number < 30 else torch.zeros_like(grad)
        before = rule.hamiltonian(state)
        of, q, p = rule.coefficients(grad, state["p"]), state["q"], state["p"]
        u, state = rule(grad, state, context(x))
        flow_p = of.m * (p + state["p"]) / 2
        # the discrete gradient in q by its definition, where q has moved enough
        a, b, c, _ = torch.nn.functional.softplus(rule.energy).unbind(0)

        def potential(q, a=a, b=b, c=c):
            return a * ((1 + (b * q) ** 2).sqrt() - 1) + c * q**2 / 2

        moved = state["q"] - q
        enough = moved.abs() > 1e-4
        flow_q = (potential(state["q"]) - potential(q)) / moved
        loss = of.rqq * flow_q**2 + 2 * of.rqp * flow_q * flow_p + of.rpp * flow_p**2
        balance = rule.hamiltonian(state) - before - (-h * loss.sum(-1) - u * grad)
        checked = enough.all(-1)
        scale = 1 + rule.hamiltonian(state)
        if checked.any():
            assert (balance / scale)[checked].abs().max() < 1e-9
        if number >= 30:
            assert (rule.hamiltonian(state) <= before * (1 + 1e-12) + 1e-14).all()


def test_the_root_is_found_where_newton_alone_would_go_to_and_fro():
    draws = torch.Generator().manual_seed(0)
    zeros = torch.zeros(100_000, dtype=torch.float64)

    def wide(low, high):
        share = torch.rand(100_000, generator=draws, dtype=torch.float64)
        return torch.exp(np.log(low) + share * np.log(high / low))

    a, b, c = wide(1e-3, 10), wide(1e-2, 30), wide(1e-3, 10)
    q, free, kappa = wide(1e-2, 100), wide(1e-2, 100), wide(1e-3, 100)
    free = torch.where(torch.rand(100_000, generator=draws) < 0.5, free, -free)
    # two points that Newton visits in turn
    for tensor, number in zip(
        (a, b, c, q, free, kappa), (4.0, 23.0, 0.006, 18.3, 25.1, 0.46), strict=True
    ):
        tensor[0] = number
    of = Coefficients(a, b, c, *[zeros] * 7)
    x = _root(of, q, free, kappa)
    quotient, slope = _quotient(of, q, x)
    off = (x - free + kappa * quotient) / (1 + kappa * slope)
    assert (off.abs() / (1e-3 + x.abs())).max() < 1e-12


def test_the_energy_of_the_semi_implicit_step_stays_bounded():
    rule = made("PortHamiltonianRule", {"integrator": "semi_implicit"})
    x = torch.zeros(N).double()
    state = rule.initial(x, LAYOUT)
    energies = []
    for number in range(400):
        grad = gradients(1)[0] if number < 20 else torch.zeros(N).double()
        state = rule(grad, state, context(x))[1]
        energies.append(rule.hamiltonian(state).sum().item())
    assert max(energies[20:]) < 2 * energies[20]


def test_the_heavy_ball_is_a_port_hamiltonian_rule():
    rule = PortHamiltonianRule(modes=1, integrator="semi_implicit").double()
    a, b, c, m = -50.0, 0.0, -50.0, 0.5413248546129181  # softplus(m) = 1
    with torch.no_grad():
        rule.energy[:, 0] = torch.tensor([a, b, c, m], dtype=torch.float64)
        rule.s.zero_()
        rule.B.zero_()
        rule.B[0, 1, 1] = 0.1**0.5
        rule.G.copy_(torch.tensor([[0.0, 1.0]]))
    p = torch.zeros(N).double()
    found, _ = rolled(rule, gradients(30))
    for grad, u in zip(gradients(30), found, strict=True):
        p = 0.9 * p - grad
        assert (u - p).abs().max() < 1e-10


@pytest.mark.parametrize(("name", "settings"), ALL, ids=str)
def test_many_problems_at_once_equal_each_alone(name, settings):
    rule = made(name, settings, spread=0.1)
    grads, x = gradients(4, 3), torch.randn(3, N).double()
    together, _ = rolled(rule, grads, x)
    for row in range(3):
        alone, _ = rolled(rule, grads[:, row], x[row])
        assert (together[:, row] - alone).abs().max() < 1e-13


@pytest.mark.parametrize(("name", "settings"), ALL, ids=str)
def test_the_order_of_tensors_does_not_matter(name, settings):
    rule = made(name, settings, spread=0.1)
    shapes = LAYOUT.shapes[::-1]
    turned = Layout(shapes)
    grads, x = gradients(5), torch.randn(N).double()

    def reverse(v):
        return turned.join(LAYOUT.views(v)[::-1])

    state, other = rule.initial(x, LAYOUT), rule.initial(x, turned)
    for step, grad in enumerate(grads):
        u, state = rule(grad, state, context(x, step))
        v, other = rule(reverse(grad), other, context(reverse(x), step, turned))
        assert (reverse(u) - v).abs().max() < 1e-13


@pytest.mark.parametrize(("name", "settings"), ALL, ids=str)
def test_tensors_of_one_entry_and_of_none_work(name, settings):
    layout = Layout(((1,), (), (0,), (1, 1)))
    rule = made(name, settings)
    x = torch.ones(3).double()
    state = rule.initial(x, layout)
    for step in range(3):
        u, state = rule(x, state, context(x, step, layout))
    assert u.shape == (3,) and u.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), ALL, ids=str)
def test_state_holds_as_many_numbers_as_declared(name, settings):
    rule = made(name, settings)
    state = rule.initial(torch.zeros(N).double(), LAYOUT)
    even = [h for key, h in state.items() if key not in rule.uneven]
    assert sum(h.numel() for h in even) == N * rule.state_size
    assert all(len(h) == N for h in even)
    for key in rule.uneven:
        assert state[key].shape[-2] == sum(rule.pieces(key, LAYOUT))


def test_a_state_of_zeros_under_norm_is_nan_as_published_and_zero_by_default():
    for epsilon in (0.0, 1e-30):
        rule = HNNRule(norm=True, epsilon=epsilon).double()
        with torch.no_grad():
            rule.output1.weight.zero_()
            rule.output1.bias.zero_()
        x = torch.ones(N).double()
        _, state = rule(x, rule.initial(x, LAYOUT), context(x))
        assert state["s"].isnan().all() == (epsilon == 0)
        assert epsilon == 0 or not state["s"].any()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: HNNRule(factor=0.0), "factor"),
        (lambda: HNNRule(epsilon=-1.0), "epsilon"),
        (lambda: HNNRule(epsilon=np.nan), "epsilon"),
        (lambda: LSTMRule(hidden=0), "hidden"),
        (lambda: LSTMRule(factor=-1.0), "factor"),
        (lambda: LSTMRule(factor=np.nan), "factor"),
        (lambda: PortHamiltonianRule(modes=0), "modes"),
        (lambda: PortHamiltonianRule(hidden=-1), "hidden"),
        (lambda: PortHamiltonianRule(factor=0.0), "factor"),
        (lambda: PortHamiltonianRule(integrator="euler"), "integrator"),
        (lambda: SmallFCRule(hidden=0), "hidden"),
        (lambda: SmallFCRule(step_mult=0.0), "step_mult"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=name):
        make()
