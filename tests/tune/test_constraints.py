"""Points that a constraint forbids: not run, but told, and for nothing."""

import math
import pickle

import pandas as pd
import pytest

from lightning_ecd.errors import UserError
from tests.cli.conftest import EXPERIMENT, cli  # noqa: F401
from tests.tune.commands import rows_of, small
from tests.tune.test_local import Spied
from tests.tune.toys import (
    SPACE,
    Scripted,
    Walk,
    interrupted,
    journal,
    run,
    seen,
    statuses,
)
from tune import ASHA, Constraint, MedianStopping, Random, Space, results
from tune.constraints import bind
from tune.search import Search

#: x of the points that `Random` suggests.
SEARCHER = Random().build(SPACE, "loss", "min")
XS = [SEARCHER.suggest(str(number))["x"] for number in range(8)]


def positive(values):
    return f"x is {values['x']:.2g}" if values["x"] <= 0 else None


def without(*numbers):
    """A constraint that forbids some trials, told by their points."""
    forbidden = {XS[number] for number in numbers}
    return lambda values: "no" if values["x"] in forbidden else None


# -- in a search -------------------------------------------------------------------


def test_what_is_forbidden_is_a_row_with_its_reason_and_no_run(tmp_path):
    assert {x <= 0 for x in XS} == {True, False}
    walk, free = Walk(), Walk()
    records = run(tmp_path / "masked", walk, samples=8, constraint=positive)
    every = run(tmp_path / "free", free, samples=8)
    assert [record.values["x"] for record in records] == XS
    for record, other in zip(records, every, strict=True):
        if record.values["x"] > 0:
            assert seen(record) == seen(other)
            assert record.reason == ""
        else:
            assert (record.status, record.error) == ("infeasible", "")
            assert record.reason == f"x is {record.values['x']:.2g}"
            assert math.isnan(record.metrics["loss"])
            assert not list((tmp_path / "masked" / f"{record.number:04d}").iterdir())
    allowed = [step for step in free.walked if XS[step[0]] > 0]
    assert walk.walked == allowed


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_the_searcher_is_told_the_worst(mode, worst, tmp_path):
    searcher = Spied()
    settings = {"searcher": searcher, "mode": mode, "samples": 3}
    run(tmp_path, Scripted([1.0], [], [2.0]), constraint=without(1), **settings)
    assert searcher.told == [("0", 1.0, False), ("1", worst, False), ("2", 2.0, False)]


def test_a_search_goes_on_without_asking_about_what_has_ended(tmp_path):
    settings = {"samples": 6, "constraint": positive}
    whole = run(tmp_path / "whole", Walk(), **settings)
    for folder in interrupted(tmp_path, **settings):
        ended = {event["trial"] for event in journal(folder) if "end" in event}
        asked = []

        def ask(values, asked=asked):
            asked.append(XS.index(values["x"]))
            return positive(values)

        records = run(folder, Walk(), samples=6, constraint=ask)
        assert list(map(seen, records)) == list(map(seen, whole))
        assert [r.reason for r in records] == [r.reason for r in whole]
        assert not ended & set(asked)


@pytest.mark.parametrize("scheduler", [ASHA(reduction_factor=2), MedianStopping()])
def test_a_scheduler_does_not_compare_with_what_was_not_run(scheduler, tmp_path):
    """Ranked as the worst there is, they would let others pass."""
    losses = [[4.0, 3.0], [3.0, 2.0], [2.0, 1.0], [3.5, 3.4], [9.0, 8.0]]
    alone = run(tmp_path / "alone", Scripted(*losses), scheduler=scheduler, samples=5)
    assert "stopped" in statuses(alone)
    scripted = Scripted([], losses[0], [], [], *losses[1:])
    settings = {"scheduler": scheduler, "samples": 8, "constraint": without(0, 2, 3)}
    records = run(tmp_path / "beside", scripted, **settings)
    assert statuses(records)[0] == "infeasible"
    left = [(r.status, r.reports) for r in records if r.status != "infeasible"]
    assert left == [(record.status, record.reports) for record in alone]


def test_both_tables_have_the_reason(tmp_path):
    records = run(tmp_path, Walk(), samples=8, constraint=positive)
    best = results.write(tmp_path, records, {"toy": dict}, "loss", "min", {})
    assert best["toy"].values["x"] > 0
    csv = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    parquet = pd.read_parquet(tmp_path / "results.parquet")
    for table in (csv, parquet):
        reasons = table["reason"].tolist()
        assert reasons == [positive({"x": x}) or "" for x in XS]
        assert list(table["status"] == "infeasible") == [x <= 0 for x in XS]


# -- what it looks at --------------------------------------------------------------


class Product(Constraint):
    """Forbids a high product of learning rate and batch size."""

    keys = ("lr", "data.batch_size")

    def __init__(self, most: float = 10.0, extra: str | None = None):
        if not most > 0:
            raise ValueError(f"most must be positive, got {most}")
        self.most = most
        self.keys = self.keys if extra is None else (*self.keys, extra)

    def forbids(self, values):
        product = values["lr"] * values["data.batch_size"]
        return f"{product:g} > {self.most:g}" if product > self.most else None


class Careless(Product):
    keys = ()


def objective_of(monkeypatch, folder, *flags):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    search = Search("val/loss", "min", EXPERIMENT, backend="local")
    (own,) = search.settings(flags).values()
    return search.objective("BBI", own, "val/loss")


def test_what_is_not_searched_has_the_experiments_value(monkeypatch, tmp_path):
    flags = ["--data.batch_size=25", "--model.optimizer.lr=0.5"]
    objective = objective_of(monkeypatch, tmp_path, *flags)
    one = bind(Product(), objective, Space({"lr": [0.1]}))
    assert one({"lr": 0.375}) is None
    assert one({"lr": 0.5}) == "12.5 > 10"
    other = bind(Product(), objective, Space({"data.batch_size": [1]}))
    assert other({"data.batch_size": 20}) is None
    assert other({"data.batch_size": 22}) == "11 > 10"
    full = bind(Product(), objective, Space({"model.optimizer.lr": [0.1]}))
    assert full({"model.optimizer.lr": 1.0}) == "25 > 10"
    assert pickle.loads(pickle.dumps(full))({"model.optimizer.lr": 2.0}) == "50 > 10"


def test_what_is_not_there_is_refused_by_name(monkeypatch, tmp_path):
    objective = objective_of(monkeypatch, tmp_path)
    space = Space({"lr": [0.1]})
    with pytest.raises(UserError, match="^constraint: Product looks at momentum: .*lr"):
        bind(Product(extra="momentum"), objective, space)
    expected = "^constraint: Careless looks at 'data.batch_size', .*; there are lr$"
    with pytest.raises(UserError, match=expected):
        bind(Careless(), objective, space)


# -- the command -------------------------------------------------------------------

_HERE = "tests.tune.test_constraints"


def masked(most, name="Product"):
    return f"constraint: {{class_path: {_HERE}.{name}, init_args: {{most: {most}}}}}\n"


def test_the_command_tells_what_was_not_run(tmp_path, cli):  # noqa: F811
    most = "optimizers: {BBI: {published: {lr: 0.5}}}\n" + masked(2.0)
    result = cli("tune", "--config", small(tmp_path, most), "--samples=4")
    assert (result.code, result.err) == (0, "")
    rows = rows_of("logs/small/version_0/results.csv")
    size = 50  # of the experiment's batches
    products = [float(row["config/lr"]) * size for row in rows]
    assert {product > 2 for product in products} == {True, False}
    for row, product in zip(rows, products, strict=True):
        status = "infeasible" if product > 2 else "completed"
        reason = f"{product:g} > 2" if product > 2 else ""
        assert (row["status"], row["reason"]) == (status, reason)
        assert (row["val/accuracy"] == "") == (product > 2)
        assert reason in result.out
    told = [line for line in result.out.splitlines() if "published: trial" in line]
    assert "completed" in told[0]  # it was not drawn
    before = rows
    assert cli("tune", "--restore", "logs/small/version_0").code == 0
    assert rows_of("logs/small/version_0/results.csv") == before


def test_a_search_all_of_whose_points_are_forbidden_is_one_line(tmp_path, cli):  # noqa: F811
    result = cli("tune", "--config", small(tmp_path, masked(1e-9)))
    assert result.code == 2
    assert "every trial of BBI: infeasible, " in result.error
    assert len(rows_of("logs/small/version_0/results.csv")) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--constraint=Nope"], ["constraint", "Nope"]),
        (["--constraint=tune.Random"], ["constraint", "Constraint"]),
        (["--constraint.most=0"], ["most", "positive"]),
        (["--constraint.least=1"], ["least", "not accepted"]),
        (["--constraint.extra=momentum"], ["constraint", "Product", "momentum", "lr"]),
        (
            ["--scheduler=tune.PopulationBased", "--backend=ray"],
            ["constraint must be null", "population"],
        ),
    ],
    ids=str,
)
def test_a_bad_constraint_is_one_line(flags, words, tmp_path, cli):  # noqa: F811
    result = cli("tune", "--config", small(tmp_path, masked(1.0)), *flags)
    assert result.code == 2
    assert all(word in result.error for word in words), result.error
    assert not list(tmp_path.rglob("metrics.csv"))
