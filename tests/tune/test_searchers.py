"""Searchers: sequences of points that repeat, go on, and find minima."""

import builtins
import importlib
import math
from statistics import median

import pytest
from ray.tune.search import Searcher as RaySearcher

from lightning_ecd.errors import UserError
from tune import Grid, HyperOpt, Optuna, QuasiRandom, Random, Space

SPACE = Space(
    {"lr": "LogUniform(1e-4, 1)", "m": "Uniform(0, 1)", "kind": ["a", "b", "c"]}
)
ALL = [Random, QuasiRandom, Grid, Optuna, HyperOpt]
DRAWN = [Random, QuasiRandom, Optuna, HyperOpt]


def need(kind):
    """Skip the test of a searcher whose package is missing."""
    if kind in (Optuna, HyperOpt):
        name = kind.__name__.lower()
        pytest.importorskip(name, reason=f"{kind.__name__} needs the package {name}")


def quadratic(point):
    """Lowest, 0, at lr = 1e-2, m = 0.3 and kind b."""
    distance = (math.log10(point["lr"]) + 2) ** 2 + 4 * (point["m"] - 0.3) ** 2
    return distance + (point["kind"] != "b")


def suggestions(searcher, numbers, told=quadratic):
    """The points that a searcher of Ray's tries when it is told what they bring."""
    points = []
    for i in numbers:
        point = searcher.suggest(str(i))
        points.append(point)
        searcher.on_trial_complete(str(i), {"loss": told(point)})
    return points


def built(searcher, space=SPACE, mode="min"):
    return searcher.build(space, "loss", mode)


# -- sequences ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", DRAWN)
def test_a_seed_repeats_the_points_and_another_does_not(kind):
    need(kind)
    settings = {} if kind in (Random, QuasiRandom) else {"startup": 4}
    one, two, other = (
        suggestions(built(kind(seed=seed, **settings)), range(12)) for seed in (5, 5, 6)
    )
    assert one == two
    assert all(a != b for a, b in zip(one, other, strict=True))
    for point in one:
        assert all(value in SPACE.coordinates[k] for k, value in point.items())


@pytest.mark.parametrize("kind", DRAWN)
def test_points_do_not_repeat_themselves(kind):
    need(kind)
    points = suggestions(built(kind()), range(12))
    assert len({point["lr"] for point in points}) == 12


@pytest.mark.parametrize("kind", ALL)
def test_a_saved_searcher_goes_on_with_the_sequence(kind, tmp_path):
    need(kind)
    settings = {"startup": 4} if kind in (Optuna, HyperOpt) else {}
    space = Space({"m": list(range(12))}) if kind is Grid else SPACE
    told = (lambda point: point["m"]) if kind is Grid else quadratic
    whole = suggestions(built(kind(**settings), space), range(12), told)
    first = built(kind(**settings), space)
    assert suggestions(first, range(7), told) == whole[:7]
    first.save(str(tmp_path / "state"))
    second = built(kind(**settings), space)
    second.restore(str(tmp_path / "state"))
    assert suggestions(second, range(7, 12), told) == whole[7:]


def test_a_grid_ends_after_its_last_point():
    space = Space({"a": [1, 2], "b": ["x", "y"]})
    searcher = built(Grid(), space)
    points = [searcher.suggest(str(i)) for i in range(4)]
    assert [tuple(point.values()) for point in points] == [
        *[(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    ]
    assert searcher.suggest("4") == RaySearcher.FINISHED
    assert Grid().samples(space, asked=20) == 4
    assert Random().samples(space, asked=20) == 20


@pytest.mark.parametrize("seed", [0, 1])
def test_sobol_points_are_balanced(seed):
    """16 points of a (0, 4, 2)-net: one in each of 16 equal boxes, however cut."""
    space = Space({"x": "Uniform(0, 16)", "y": "Uniform(0, 16)"})
    searcher = built(QuasiRandom(seed), space)
    points = [tuple(searcher.suggest(str(i)).values()) for i in range(16)]
    for rows in (1, 2, 4, 8, 16):
        boxes = {(int(x * rows / 16), int(y / rows)) for x, y in points}
        assert len(boxes) == 16
    draws = built(Random(seed), space)
    points = [tuple(draws.suggest(str(i)).values()) for i in range(16)]
    assert len({(int(x / 4), int(y / 4)) for x, y in points}) < 16


# -- searching ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Optuna, HyperOpt])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_model_finds_the_optimum_better_than_chance(kind, mode):
    need(kind)
    space = Space({name: "Uniform(-1, 1)" for name in "xyz"})
    sign = 1 if mode == "min" else -1

    def bowl(point):
        return sum((value - 0.3) ** 2 for value in point.values())

    def found(searcher):
        """Medians, over searches, of the best value and of the last 20."""
        runs = []
        for seed in range(3):
            made = built(searcher(seed), space, mode)
            points = suggestions(made, range(60), lambda point: sign * bowl(point))
            runs.append([bowl(point) for point in points])
        return median(map(min, runs)), median(median(run[-20:]) for run in runs)

    best, late = found(lambda seed: kind(startup=10, seed=seed))
    chance, often = found(lambda seed: Random(seed=seed))
    assert best < 0.5 * chance
    assert late < 0.6 * often


def test_the_first_points_of_optuna_are_draws():
    """What trials bring changes nothing before `startup` of them, and all after."""
    need(Optuna)
    other = lambda point: -quadratic(point)  # noqa: E731
    one = suggestions(built(Optuna(startup=5)), range(8))
    two = suggestions(built(Optuna(startup=5)), range(8), other)
    assert one[:5] == two[:5]
    assert one[6] != two[6]


@pytest.mark.parametrize("kind", [Optuna, HyperOpt])
def test_an_infinite_loss_is_a_bad_place(kind):
    """Of 60 random points 30 would lie where the loss is infinite."""
    need(kind)
    space = Space({"m": "Uniform(0, 1)"})

    def told(point):
        return math.inf if point["m"] > 0.5 else (point["m"] - 0.3) ** 2

    late = []
    for seed in range(3):
        searcher = built(kind(startup=10, seed=seed), space)
        late += suggestions(searcher, range(40), told)[-20:]
    assert sum(point["m"] > 0.5 for point in late) < 20


@pytest.mark.parametrize("kind", [Optuna, HyperOpt])
def test_a_failed_trial_is_no_hindrance(kind):
    need(kind)
    searcher = built(kind(startup=2))
    for i in range(6):
        searcher.suggest(str(i))
        searcher.on_trial_complete(str(i), None, error=True)
    assert suggestions(searcher, range(6, 9))


def test_decays_are_searched_by_their_rates():
    space = Space({"m": "Decay(5, 9)"})
    for kind in DRAWN:
        need(kind)
        (point,) = suggestions(built(kind(), space), [0], lambda point: 0.0)
        assert 5 <= point["m"] <= 9
        assert math.exp(-9) <= space.values(point)["m"] <= math.exp(-5)


# -- what is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Optuna(startup=0), "startup must be at least 1, got 0"),
        (lambda: Optuna(sampler="nsga"), "sampler must be tpe or cmaes, got 'nsga'"),
        (lambda: HyperOpt(startup=0), "startup must be at least 1, got 0"),
        (lambda: HyperOpt(gamma=1.0), r"gamma must be in \(0, 1\), got 1.0"),
        (lambda: HyperOpt(gamma=0.0), r"gamma must be in \(0, 1\), got 0.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_grid_over_a_continuum_is_refused():
    with pytest.raises(UserError, match="space of lr"):
        Grid().samples(SPACE, 10)


@pytest.mark.parametrize(
    ("searcher", "package"),
    [(Optuna(), "optuna"), (HyperOpt(), "hyperopt"), (Optuna("cmaes"), "cmaes")],
)
def test_a_missing_package_is_one_line_that_says_what_to_do(
    searcher, package, monkeypatch
):
    if package == "cmaes":
        need(Optuna)
        importlib.import_module("ray.tune.search.optuna")
    found = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError) as caught:
        built(searcher)
    message = str(caught.value)
    assert f"needs the package {package}" in message
    assert "pip install" in message and "\n" not in message
