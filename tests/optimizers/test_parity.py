"""The fast optimizers against slow transcriptions, and against torch."""

import pytest
import torch

from lightning_ecd.kernels import Eager
from lightning_ecd.optimizers import BBI, ECDSep, HeavyBall
from tests.cases import (
    PROBLEMS,
    build,
    closure_of,
    descend,
    start,
    typical,
    values,
    variants,
)
from tests.reference import born_infeld, ecd, plain

STEPS, TOLERANCE = 100, 1e-12


def evaluation(params, loss):
    """Return what the transcriptions call: loss and fresh gradients."""

    def evaluate():
        leaves = [p.detach().clone().requires_grad_() for p in params]
        value = loss(leaves)
        return value.item(), list(torch.autograd.grad(value, leaves))

    return evaluate


def reference(name, settings, groups):
    """Return the transcription on copies of `groups`, and the copies, all in one."""
    copies = [[p.detach().clone() for p in g["params"]] for g in groups]
    arguments = [
        {**settings, **{k: v for k, v in g.items() if k != "params"}} for g in groups
    ]
    if name == "HeavyBall":
        slow = plain.HeavyBall(copies, arguments)
    else:
        slow = getattr(born_infeld if name == "BBI" else ecd, name)(
            copies,
            [ecd.settings_of(name, a) for a in arguments],
            ecd.recorded(),
            settings.get("compat", False),
        )
    return slow, [x for group in copies for x in group]


class Taped(Eager):
    """The eager passes, turning by recorded draws."""

    def __init__(self, tape):
        self.tape = tape

    def normals(self, like, seed, step, offset):
        return self.tape("normal", like.numel()).to(like)


def inject(optimizer):
    """Hand the recorded draws to an optimizer that draws."""
    tape = ecd.recorded()
    optimizer.draw = lambda kind, like: tape(kind, like.numel()).to(like)
    optimizer.body_of = lambda x: Taped(tape)


def deviation(name, settings, groups, loss, steps=STEPS):
    """Return the largest relative difference between fast and slow trajectory."""
    slow, copies = reference(name, settings, groups)
    params = [p for group in groups for p in group["params"]]
    optimizer = build(name, settings, groups)
    inject(optimizer)
    closure = closure_of(optimizer, params, loss)
    evaluate = evaluation(copies, loss)
    worst = 0.0
    for _ in range(steps):
        fast_loss, slow_loss = optimizer.step(closure).item(), slow.step(evaluate)
        x, y = values(params), values(copies)
        worst = max(
            worst,
            float((x - y).norm() / y.norm()),
            abs(fast_loss - slow_loss) / abs(slow_loss),
        )
    return worst


def transcribed(name):
    return name in ("HeavyBall", "BBI", "ECDSep", "ECDSepLeapfrog", "ECDq1")


@pytest.mark.parametrize("problem", PROBLEMS)
@variants(transcribed)
def test_equals_the_transcription(name, settings, problem):
    groups = [{"params": start()}]
    assert deviation(name, settings, groups, PROBLEMS[problem]) < TOLERANCE


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ECDq1", {"lr": 0.01, "eta": 5.0, "f_min": -1, "step_size": "elementwise"}),
        ("ECDq1", {"lr": 0.03, "eta": 5.0, "f_min": -1, "gamma": 0.5, "compat": True}),
        ("ECDq1", {"lr": 0.6, "eta": 20.0, "f_min": -0.5, "nu": 1e-2}),
        (
            "ECDq1",
            {"lr": 0.05, "eta": 5.0, "f_min": 50, "step_size": "theta"}
            | {"self_tuning": True},
        ),
        ("ECDSep", {"lr": 0.002, "rule": "polyak", "compat": True}),
        ("ECDSep", {"lr": 0.02, "rule": "absolute", "compat": True, "nu": 0.1}),
    ],
    ids=[
        "elementwise",
        "compat_slowing",
        "strong",
        "shifted",
        "compat_polyak",
        "compat_absolute",
    ],
)
def test_rules_that_amplify_rounding_equal_the_transcription(name, settings, problem):
    """Steps over |g_i| or |g_k| of single entries or tensors leave no room for more."""
    groups = [{"params": start()}]
    assert deviation(name, settings, groups, PROBLEMS[problem], steps=8) < 1e-9


@variants(transcribed)
def test_equals_the_transcription_with_groups_of_their_own(name, settings):
    a, b, c, d = start()
    decay = {"weight_decay": 3e-2}
    groups = [
        {"params": [a, b]},
        {"params": [c, d], "lr": 0.6 * settings["lr"], **decay},
    ]
    assert deviation(name, settings, groups, PROBLEMS["quadratic"]) < TOLERANCE


@variants(transcribed)
def test_equals_the_transcription_on_minibatches(name, settings):
    """V exceeds E, and falls below f_min, on some of these batches."""

    def noisy(loss):
        calls = 0

        def value(params):
            nonlocal calls
            calls += 1
            factor = (1.0, 1.7, 0.4, 2.5, 0.9)[calls % 5]
            # every eleventh batch lies below any f_min used here
            return factor * loss(params) - (50.0 if calls % 11 == 0 else 0.0)

        return value

    slow, copies = reference(name, settings, [{"params": start()}])
    params = start()
    optimizer = build(name, settings, params)
    inject(optimizer)
    closure = closure_of(optimizer, params, noisy(PROBLEMS["quadratic"]))
    evaluate = evaluation(copies, noisy(PROBLEMS["quadratic"]))
    # a shift by such a batch leaves V far above E, where kicks amplify rounding
    for _ in range(35 if settings.get("self_tuning") else STEPS):
        optimizer.step(closure)
        slow.step(evaluate)
        x, y = values(params), values(copies)
        assert float((x - y).norm() / y.norm()) < TOLERANCE


@pytest.mark.parametrize("cls", [BBI, ECDSep])
def test_equals_the_transcription_when_the_first_batches_lie_below_f_min(cls):
    name, settings = cls.__name__, {"lr": 0.05}

    def late():
        calls = 0

        def value(params):
            nonlocal calls
            calls += 1
            return PROBLEMS["quadratic"](params) - (100.0 if calls < 4 else 0.0)

        return value

    slow, copies = reference(name, settings, [{"params": start()}])
    params = start()
    optimizer = build(name, settings, params)
    inject(optimizer)
    closure = closure_of(optimizer, params, late())
    evaluate = evaluation(copies, late())
    for _ in range(20):
        optimizer.step(closure)
        slow.step(evaluate)
        torch.testing.assert_close(values(params), values(copies), rtol=1e-12, atol=0)
    assert not torch.equal(values(params), values(start()))


def test_compat_separable_starts_when_v_to_the_eta_exceeds_its_threshold():
    """At eta = 5 the released rule rests at 1e-9, and sets E by the batch after."""
    settings = {"lr": 0.05, "eta": 5.0, "nu": 0.0, "compat": True}

    def rising():
        calls = 0

        def value(params):
            nonlocal calls
            calls += 1
            return PROBLEMS["quadratic"](params) * (1e-10 if calls < 3 else 1.0)

        return value

    slow, copies = reference("ECDSep", settings, [{"params": start()}])
    params = start()
    optimizer = build("ECDSep", settings, params)
    closure = closure_of(optimizer, params, rising())
    evaluate = evaluation(copies, rising())
    for _ in range(10):
        optimizer.step(closure)
        slow.step(evaluate)
        torch.testing.assert_close(values(params), values(copies), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["BBI", "ECDSep"])
def test_violations_below_eps1_are_left_alone(name):
    """At such an lr no step violates the energy by 1e-10, a few dozen together do."""
    settings = {"lr": 1e-6, "extra_energy": 1.0}
    slow, copies = reference(name, settings, [{"params": start()}])
    params = start()
    optimizer = build(name, settings, params)
    inject(optimizer)
    closure = closure_of(optimizer, params, PROBLEMS["quadratic"])
    evaluate = evaluation(copies, PROBLEMS["quadratic"])
    for _ in range(30):
        optimizer.step(closure)
        slow.step(evaluate)
        momenta = slow.ps if name == "ECDSep" else slow.pi.values()
        size = ecd.squared(list(momenta)) ** 0.5
        assert optimizer.info["momentum"] == pytest.approx(size, rel=1e-13, abs=0)


@variants(lambda name: name in ("BBI", "HeavyBall"))
def test_equals_the_transcription_when_a_group_is_added(name, settings):
    """Corrected: at rest, like a thawed tensor; compat: launched like the first."""
    a, b = start(shapes=[(6,), (4, 2)])
    slow, copies = reference(name, settings, [{"params": [a]}])
    late = b.detach().clone()
    optimizer = build(name, settings, [a])
    inject(optimizer)
    loss = PROBLEMS["quadratic"]
    for step in range(60):
        if step == 10:
            optimizer.add_param_group({"params": [b]})
            copies.append(late)
            slow.groups.append([late])
            slow.settings.append(slow.settings[0])
            if name == "HeavyBall":
                slow.momenta.append([torch.zeros_like(late)])
            elif not settings.get("compat"):
                slow.pi[id(late)] = torch.zeros_like(late)
        present = [a, b] if step >= 10 else [a]
        optimizer.step(closure_of(optimizer, present, loss))
        slow.step(evaluation(copies, loss))
        torch.testing.assert_close(
            values(present), values(copies), rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize(
    "split",
    [
        [(29,)],
        [(3, 4), (5,), (), (0, 3), (11,)],
        [()] * 3 + [(26,)],
    ],
    ids=["one", "several", "scalars"],
)
@pytest.mark.parametrize("grouped", [False, True])
@typical(transcribed)
def test_any_split_gives_the_same_trajectory(name, settings, split, grouped):
    if settings.get("compat") and name in ("BBI", "ECDq1"):
        settings = {**settings, "compat": False}
    whole = start()
    pieces = values(whole).split(
        [torch.Size(s).numel() for s in split] + [30 - _count(split)]
    )
    params = [
        piece.clone().reshape(shape).requires_grad_()
        for piece, shape in zip(pieces, [*split, (30 - _count(split),)], strict=True)
    ]
    groups = [{"params": params[:1]}, {"params": params[1:]}] if grouped else params
    optimizers = build(name, settings, whole), build(name, settings, groups)
    descend(optimizers[0], whole, PROBLEMS["rosenbrock"], 30)
    descend(optimizers[1], params, PROBLEMS["rosenbrock"], 30)
    torch.testing.assert_close(values(whole), values(params), rtol=1e-10, atol=1e-12)


def _count(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes)


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_heavy_ball_equals_sgd_of_torch(momentum, weight_decay):
    settings = {"lr": 0.02, "momentum": momentum, "weight_decay": weight_decay}
    ours, theirs = start(), start()
    descend(HeavyBall(ours, **settings), ours, PROBLEMS["rosenbrock"], STEPS)
    descend(torch.optim.SGD(theirs, **settings), theirs, PROBLEMS["rosenbrock"], STEPS)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-12, atol=0)
