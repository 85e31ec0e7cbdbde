"""Scores of comparisons, against numbers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tune.scores import Rules, Scores, area, gaps, p_value, profile

RULES = Rules(
    {"up": "val/accuracy", "down": "val/loss"},
    {"up": "max", "down": "min"},
    {"up": 100, "down": 10},
    ["A", "B"],
    0.5,
)
#: task, optimizer, study, trial: lr, {evaluations: value}
RUNS = [
    ("up", "A", 0, 0, 0.1, {25: 0.5, 50: 0.6, 100: 0.9}),
    ("up", "A", 0, 1, 1.0, {25: 0.7, 50: 0.4, 100: 0.4}),
    ("up", "A", 1, 2, 0.1, {25: 0.2, 50: 0.5, 100: 0.8}),
    ("up", "A", 1, 3, 10.0, {25: math.nan}),
    ("up", "B", 0, 0, 0.1, {25: 0.1, 50: 0.2, 100: 0.3}),
    ("up", "B", 1, 1, 0.1, {}),
    ("up", "C", 0, 0, 0.01, {25: 0.59, 50: 0.61, 100: 0.7}),
    ("up", "C", 0, 1, 0.1, {25: 0.61, 50: 0.61, 100: 0.62}),
    ("up", "C", 1, 2, 10.0, {25: 0.1, 50: 0.3, 100: 0.5}),
    ("down", "A", 0, 0, 0.1, {5: 3.0, 10: 2.0}),
    ("down", "A", 1, 1, 0.1, {5: 1.0, 10: 0.5}),
    ("down", "B", 0, 0, 0.1, {5: 1.0, 10: 2.0}),
    ("down", "B", 1, 1, 0.1, {5: 2.0, 10: 1.0}),
    ("down", "C", 0, 0, 0.1, {5: 9.0, 10: 8.0}),
    ("down", "C", 1, 1, 0.1, {5: 9.0, 10: 1.5}),
]


@pytest.fixture
def scores():
    trials, curves = [], []
    for *head, lr, course in RUNS:
        trials.append([*head, "completed", lr])
        # a second is ten evaluations, of C five
        pace = 5 if head[1] == "C" else 10
        curves += [[*head, t, t / pace, value] for t, value in course.items()]
    keys = ["task", "optimizer", "study", "trial"]
    return Scores(
        pd.DataFrame(trials, columns=[*keys, "status", "config/lr"]),
        pd.DataFrame(curves, columns=[*keys, "evaluations", "seconds", "value"]),
        RULES,
    )


def test_of_a_study_its_best_trial_counts(scores):
    assert scores.best_values("up", "A").tolist() == [0.9, 0.8]
    assert scores.best_values("up", "A", 0.5).tolist() == [0.7, 0.5]
    assert scores.best_values("up", "B").tolist() == [0.3, -math.inf]
    assert scores.best_values("down", "B").tolist() == [1.0, 1.0]


def test_the_better_baseline_sets_the_target(scores):
    # up, half the budget: A (.7 + .5)/2, B between .2 and nothing; down: A 2, B 1.5
    assert scores.target("up") == pytest.approx(0.6)
    assert scores.target("down") == pytest.approx(1.5)


def test_prices_are_medians_of_the_fastest_trials(scores):
    assert scores.prices("up", "A", "evaluations").tolist() == [25, 100]
    assert scores.prices("up", "C", "seconds").tolist() == [5.0, math.inf]
    table = scores.table("evaluations")
    assert table.loc["up"].tolist() == [62.5, math.inf, math.inf]
    assert table.loc["down"].tolist() == [math.inf, 7.5, math.inf]
    assert scores.table("seconds").loc["up", "A"] == 6.25


def test_final_values_have_errors_and_paired_tests(scores):
    table = scores.final("up")
    assert table.attrs["baseline"] == "A"
    assert table.loc["A", "mean"] == pytest.approx(0.85)
    assert table.loc["A", "error"] == pytest.approx(0.05)
    assert table.loc["C", "difference"] == pytest.approx(0.6 - 0.85)
    # C - A: -.2, -.3: t = -.25/.05 on one degree of freedom; B has one study: no test
    p = 2 * stats.t.sf(5, 1)
    assert table.loc["C", "p"] == pytest.approx(p)
    assert math.isnan(table.loc["A", "p"]) and math.isnan(table.loc["B", "p"])
    down = scores.final("down")
    assert down.attrs["baseline"] == "B"


def test_sensitivity(scores):
    reliability = scores.reliability()
    assert reliability.loc["up"].tolist() == [0.75, 0.0, pytest.approx(2 / 3)]
    width = scores.lr_width()
    assert width.loc["up", "A"] == pytest.approx(1.0)
    assert width.loc["up", "C"] == pytest.approx(1.0)
    assert math.isnan(width.loc["up", "B"])


def test_profiles_and_areas_by_hand():
    prices = pd.DataFrame(
        {"A": [10.0, 30.0, math.inf], "B": [20.0, 10.0, math.inf]},
        index=["x", "y", "nobody"],
    )
    found = profile(prices, [1, 2, 3])
    assert found["A"].tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert found["B"].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    # to τ = 4, of three tasks: A 3 + 1, B 2 + 3, over 3
    assert area(prices, 4)["A"] == pytest.approx(4 / 9)
    assert area(prices, 4)["B"] == pytest.approx(5 / 9)
    taus = np.linspace(1, 4, 3001)
    integral = np.trapezoid(profile(prices, taus)["B"], taus) / 3
    assert area(prices, 4)["B"] == pytest.approx(integral, abs=1e-3)


def test_equal_samples_have_no_test():
    same = pd.Series([1.0, 2.0])
    assert math.isnan(p_value(gaps(same, same)))
    assert math.isnan(p_value(gaps(same, pd.Series([1.0]))))


def test_gaps_that_differ_by_rounding_have_no_test():
    """Three gaps of one sample of 250, as logged in single precision."""
    a = pd.Series(np.array([0.968, 0.972, 0.98], dtype=np.float32).astype(float))
    b = pd.Series(np.array([0.964, 0.968, 0.976], dtype=np.float32).astype(float))
    gap = gaps(a, b)
    assert gap.tolist() == pytest.approx([0.004] * 3, rel=1e-5) and math.isnan(
        p_value(gap)
    )
    b[2] = 0.972
    assert 0 < p_value(gaps(a, b)) < 1


def test_the_better_baseline_reaches_something_in_most_studies():
    keys = ["task", "optimizer", "study", "trial"]
    rows = [("B", 0, 0.9), ("A", 0, 0.5), ("A", 1, 0.7), ("C", 0, 0.4), ("C", 1, 0.5)]
    curves = pd.DataFrame(
        [("t", o, s, 2 * s, 1, 0.1, v) for o, s, v in rows],
        columns=[*keys, "evaluations", "seconds", "value"],
    )
    trials = pd.DataFrame(
        [("t", o, s, 2 * s, "completed") for o in "ABC" for s in (0, 1)],
        columns=[*keys, "status"],
    )
    rules = Rules({"t": "val/a"}, {"t": "max"}, {"t": 1}, ["A", "B"], 1.0)
    table = Scores(trials, curves, rules).final("t")
    assert table.attrs["baseline"] == "A"
    # over the study that B has: .9 - .5; over both studies of C: -.1 and -.2
    assert table.loc["B", "difference"] == pytest.approx(0.4)
    assert table.loc["C", "difference"] == pytest.approx(-0.15)
