"""Every registered optimizer has a case, documentation, ranges and limits."""

import inspect
import math

import pytest
import torch

from lightning_ecd.optimizers import REGISTRY, HeavyBall, traits_of
from lightning_ecd.optimizers.traits import UNKNOWN, Traits, arithmetic
from tests.cases import CASES, build, descend, ours, quadratic, start, typical, variants

OURS = sorted(filter(ours, REGISTRY))


def test_every_registered_optimizer_has_a_case():
    assert set(REGISTRY) == set(CASES)


def test_names_are_class_names():
    assert all(entry.cls.__name__ == name for name, entry in REGISTRY.items())


@pytest.mark.parametrize("name", OURS)
def test_every_argument_is_covered_by_a_case(name):
    parameters = inspect.signature(REGISTRY[name].cls).parameters.values()
    arguments = {p.name for p in parameters if "Callable" not in str(p.annotation)}
    arguments -= {"params"}
    used = {key for settings in CASES[name].good.values() for key in settings}
    assert arguments <= used


@pytest.mark.parametrize("name", OURS)
def test_every_bounded_argument_has_a_bad_value(name):
    refused = {argument for _, argument in CASES[name].bad}
    accepted = inspect.signature(REGISTRY[name].cls).parameters
    assert set(REGISTRY[name].cls.bounds) & set(accepted) <= refused


@pytest.mark.parametrize("name", OURS)
def test_docstring_lists_every_argument_in_order(name):
    cls = REGISTRY[name].cls
    section = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0]
    listed = [
        line.split(":")[0].strip()
        for line in section.splitlines()
        if line.startswith("    ") and not line.startswith("     ")
    ]
    assert listed == list(inspect.signature(cls).parameters)


@pytest.mark.parametrize("name", OURS)
def test_docstring_has_formula_and_reference(name):
    text = inspect.getdoc(REGISTRY[name].cls)
    assert ".. math::" in text and "Reference:" in text


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_defaults_lie_in_their_search_range_or_are_off(name):
    entry = REGISTRY[name]
    parameters = inspect.signature(entry.cls).parameters
    assert "lr" in entry.ranges
    for argument, allowed in entry.ranges.items():
        default = parameters[argument].default
        if default is not None:  # else something else brings the value
            assert default in allowed or default == 0, argument


@pytest.mark.parametrize("name", OURS)
def test_search_ranges_are_accepted_by_the_constructor(name):
    for argument, allowed in REGISTRY[name].ranges.items():
        for value in (allowed.low, allowed.high):
            build(name, {argument: value}, start())


@pytest.mark.parametrize(
    ("name", "bad", "argument"),
    [(name, bad, arg) for name, case in CASES.items() for bad, arg in case.bad],
)
def test_bad_values_raise_and_name_the_argument(name, bad, argument):
    with pytest.raises(ValueError, match=rf"^{argument} must ") as error:
        build(name, bad, start())
    assert str(bad[argument]) in str(error.value)


@pytest.mark.parametrize("name", OURS)
def test_bad_values_of_a_group_raise(name):
    a, b = start(shapes=[(2,), (3,)])
    with pytest.raises(ValueError, match="lr must lie in"):
        build(name, {}, [{"params": [a]}, {"params": [b], "lr": -1.0}])
    optimizer = build(name, {}, [a])
    bad = "weight_decay" if "weight_decay" in optimizer.bounds else "lr"
    with pytest.raises(ValueError, match=f"{bad} must lie in"):
        optimizer.add_param_group({"params": [b], bad: -1.0})


@pytest.mark.parametrize(
    ("name", "bad", "value"),
    [
        ("EntropyAdam", "inner_lr", -1.0),
        ("EntropyAdam", "eps", 0.0),
        ("EntropyAdam", "betas", (1.0, 0.9)),
        ("EntropyECD", "alpha", 1.5),
        ("ECDSep", "energy", 0.0),
        ("RBD", "surgeon", 2.0),
    ],
)
def test_what_may_be_none_has_bounds_in_groups_too(name, bad, value):
    a, b = start(shapes=[(2,), (3,)])
    with pytest.raises(ValueError, match=f"{bad} must lie in"):
        build(name, {}, [{"params": [a]}, {"params": [b], bad: value}])


@variants()
def test_declared_state_is_what_is_stored(name, settings):
    params = start(shapes=[(40, 20), (200,)])
    optimizer = build(name, settings, params)
    descend(optimizer, params, quadratic, 2)
    stored = sum(
        value.numel()
        for state in optimizer.state_dict()["state"].values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    declared = traits_of(type(optimizer)).count("state", optimizer.param_groups[0])
    assert stored == 1000 * declared


@variants()
def test_declared_evaluations_are_those_made(name, settings):
    params = start()
    optimizer = build(name, settings, params)
    made = 0

    def closure():
        nonlocal made
        made += 1
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()
        return loss

    steps = 25
    for _ in range(steps):
        optimizer.step(closure)
    traits, group = traits_of(type(optimizer)), optimizer.param_groups[0]
    declared = (traits.count("evaluations", {**group, "step": t}) for t in range(steps))
    assert made == sum(declared)


@typical()
def test_repr_shows_class_and_lr(name, settings):
    text = repr(build(name, settings, start()))
    assert text.startswith(name) and f"lr: {settings['lr']}" in text


def test_an_unregistered_class_declares_nothing_but_one_evaluation():
    assert traits_of(torch.optim.Adagrad) is UNKNOWN
    assert UNKNOWN.count("evaluations", {}) == 1


def test_a_subclass_of_ours_inherits_its_traits():
    class Lighter(HeavyBall):
        pass

    assert traits_of(Lighter) is HeavyBall.traits


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * k", 7),
        ("k // 2 - 1", 0),
        ("k % 2 == 1 and not a", 1),
        ("(k > 5) or (k < 2)", 0),
    ],
)
def test_traits_do_arithmetic(text, value):
    assert int(arithmetic(text, {"k": 3, "a": 0})) == value


@pytest.mark.parametrize("text", ["__import__('os')", "k.real", "unknown", "[1][0]"])
def test_traits_refuse_anything_else(text):
    with pytest.raises(ValueError, match="cannot read"):
        Traits("", "", "", state=text).count("state", {"k": math.pi})
