"""Tables of published numbers beside ours."""

from pathlib import Path

import pytest
import yaml

from lightning_ecd.errors import Diverged
from tests.cli.conftest import ROOT, cli  # noqa: F401
from tests.cli.test_configs import missing
from tune import sources, tables
from tune.tables import Result, Row

TABLES = sorted((ROOT / "configs" / "table").glob("*.yaml"))


def row(**settings):
    return Row("a", "m", settings.pop("published", 10.0), study="s", **settings)


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_table_reads(file):
    title, rows = tables.read(file)
    assert title and rows
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.cut().seeds == row.seeds[:1]  # raises without a smoke variant
        sources.kind_of(file.parent / row.file)


def experiment_of(file, row):
    """Return the experiment that a row, or its study, is about; None: neither."""
    if row.experiment:
        return file.parent / row.experiment
    study = file.parent / row.study
    experiment = yaml.safe_load(study.read_text()).get("experiment")
    return study.parent / experiment if experiment else None


@pytest.mark.slow
@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_table_runs_cut(file, cli):  # noqa: F811
    _, rows = tables.read(file)
    experiments = {experiment_of(file, row) for row in rows} - {None}
    for reason in filter(None, map(missing, experiments)):
        pytest.skip(reason)
    result = cli("table", file, "--budget=smoke")
    assert (result.code, result.err) == (0, "")
    text = (next(Path("logs", file.stem).glob("*")) / "table.md").read_text()
    assert text.count("| 1 | smoke |") == len(rows) and "nan" not in text


def test_compared_optimizers_have_the_names_of_the_experiment():
    for file in TABLES:
        for row in tables.read(file)[1]:
            if row.metric.startswith("test/final/"):
                experiment = yaml.safe_load(experiment_of(file, row).read_text())
                settings = experiment["model"]["init_args"]
                name = row.metric.removeprefix("test/final/")
                assert name in {settings["name"], *settings["others"]}
                assert row.error_metric == f"test/final_error/{name}"


def test_random_bases_have_the_published_rates():
    """Also where a row takes another optimizer, which starts from its own defaults."""
    rates = {
        "FC-MNIST": (1.0, 0.125),
        "FC-FMNIST": (0.5, 0.25),
        "FC-CIFAR10": (0.25, 0.0078125),
        "CNN-MNIST": (0.0625, 0.03125),
        "CNN-FMNIST": (0.125, 0.0625),
        "CNN-CIFAR10": (0.125, 0.015625),
    }
    folder = ROOT / "configs" / "table"
    _, rows = tables.read(folder / "random_bases.yaml")
    assert len(rows) == 5 * len(rates)
    for row in rows:
        kind, network = row.name.split(", ")[:2]
        expected = rates[network][kind == "SGD"]
        experiment = yaml.safe_load((folder / row.experiment).read_text())
        settings = experiment["model"]["init_args"]["optimizer"]["init_args"]
        flags = dict(word.split("=", 1) for word in row.arguments)
        given = flags.get("--model.optimizer.lr")
        found = settings["lr"] if kind == "RBD" else given
        assert float(found) == expected, row.name
        if kind in ("FPD", "NES"):
            assert flags["--model.optimizer.dimensions"] == "250"


def test_mean_and_standard_error_of_the_seeds():
    result = Result(row(seeds=(0, 1, 2)), (1.0, 2.0, 6.0))
    assert result.mean == 3.0
    # deviations -2, -1, 3: variance 14/2 = 7
    assert result.error == pytest.approx((7 / 3) ** 0.5)
    assert Result(row(), (1.0,), own_error=0.5).error == 0.5


@pytest.mark.parametrize(
    ("settings", "values", "own_error", "verdict"),
    [
        ({"error": 0.3}, (10.9,), 0.4, "reproduced"),  # 2 (0.09 + 0.16)^½ = 1
        ({"error": 0.3}, (11.1,), 0.4, "NOT reproduced"),
        ({}, (10.0,), 0.0, "no error known"),
        # deviations -8, 16, -8: variance 192, standard error 192^½/3^½ = 8
        ({"published": 17.0}, (10.0, 34.0, 10.0), 0.0, "reproduced"),
        ({"published": 15.0}, (10.0, 34.0, 10.0), 0.0, "too noisy"),
        ({"published": 0.0}, (0.1,), 0.2, "reproduced"),
        ({"rule": "relative", "tolerance": 0.1}, (9.1,), 0.0, "reproduced"),
        ({"rule": "relative", "tolerance": 0.1}, (8.9,), 0.0, "NOT reproduced"),
        ({"rule": "at_most"}, (10.0,), 0.0, "reproduced"),
        ({"rule": "at_most"}, (10.1,), 0.0, "NOT reproduced"),
        ({"rule": "at_least", "tolerance": 0.5}, (9.6,), 0.0, "reproduced"),
        ({"rule": "at_least", "tolerance": 0.5}, (9.4,), 0.0, "NOT reproduced"),
    ],
)
def test_verdicts(settings, values, own_error, verdict):
    assert Result(row(**settings), values, own_error).verdict == verdict


def write(folder, rows):
    (folder / "study.yaml").write_text(
        "function: {class_path: lightning_ecd.functions.Quadratic}\n"
        "optimizers:\n"
        "  HB:\n    class_path: lightning_ecd.optimizers.HeavyBall\n"
        "    init_args: {lr: 0.1, momentum: 0.0}\n"
        "steps: 10\n"
    )
    file = folder / "table.yaml"
    file.write_text(f"title: T\nrows:\n{rows}")
    return file


def watched(monkeypatch, run):
    """Let a function of (arguments, seed) run the studies of trajectories."""
    monkeypatch.setitem(sources.SOURCES, "trajectories", run)


def test_shared_runs_are_made_once(tmp_path, monkeypatch):
    entry = "  - {{name: {}, study: study.yaml, metric: HB/{}, published: 1}}\n"
    rows = entry.format("one", "best") + entry.format("two", "steps")
    calls = []
    run = sources.run_trajectories
    watched(monkeypatch, lambda *args: (calls.append(args), run(*args))[1])
    _, read = tables.read(write(tmp_path, rows))
    results = list(tables.measure(read, tmp_path))
    assert len(calls) == 1
    assert results[1].values == (10.0,)
    # F = ½(x² + 10 y²) from (3, -2): each step multiplies x by 0.9 and y by 0
    assert results[0].mean == pytest.approx(0.5 * 9 * 0.9**20)


def test_the_command_prints_and_writes(tmp_path, cli):  # noqa: F811
    rows = (
        "  - {name: lowest, study: study.yaml, metric: HB/best, published: 0.5471,\n"
        "     rule: relative, tolerance: 1.0e-3}\n"
        "  - {name: '|other|', study: study.yaml, metric: HB/best, published: 1.0,\n"
        "     rule: at_least}\n"
    )
    result = cli("table", write(tmp_path, rows))
    assert (result.code, result.err) == (0, "")
    text = Path("logs/table/version_0/table.md").read_text()
    assert "| lowest | 0.5471 | 0.54709 | 1 | reproduced |" in text
    assert r"| \|other\| | 1 | 0.54709 | 1 | NOT reproduced |" in text
    csv = Path("logs/table/version_0/table.csv").read_text()
    assert csv.count("\n") == 3
    listed = cli("table", tmp_path / "table.yaml", "--list", "--rows=low*")
    assert listed.out == "lowest: published 0.5471\n"


def test_an_experiment_is_run_for_every_seed(tmp_path, cli):  # noqa: F811
    short = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=3",
        "--data.seed={seed}",
    ]
    experiment = ROOT / "configs" / "experiment" / "bbi_digits.yaml"
    flags = "".join(f"      - {flag!r}\n" for flag in short)
    file = tmp_path / "digits.yaml"
    file.write_text(
        "title: T\nrows:\n"
        f"  - name: digits\n    experiment: {experiment}\n"
        f"    metric: test/accuracy\n    published: 0.0\n    rule: at_least\n"
        f"    seeds: [1, 2]\n    arguments:\n{flags}"
    )
    result = cli("table", file)
    assert (result.code, result.err) == (0, ""), result.err
    line = Path("logs/digits/version_0/table.csv").read_text().splitlines()[1]
    values = line.rsplit(",", 1)[1].split()
    assert len(values) == 2 and all(0 < float(v) < 1 for v in values)


def test_a_run_that_diverges_is_a_verdict(tmp_path, monkeypatch):
    def diverge(*args):
        raise Diverged("step 3: the loss is nan")

    watched(monkeypatch, diverge)
    entry = "  - {name: one, study: study.yaml, metric: HB/best, published: 1}\n"
    _, rows = tables.read(write(tmp_path, entry))
    (result,) = tables.measure(rows, tmp_path)
    assert result.verdict == "diverged"


def test_one_seed_of_several_diverges(tmp_path, cli, monkeypatch):  # noqa: F811
    run = sources.run_trajectories

    def sometimes(arguments, seed):
        if seed == 1:
            raise Diverged("step 3: the loss is nan")
        return run(arguments, seed)

    watched(monkeypatch, sometimes)
    entry = "  - {{name: {}, study: study.yaml, metric: HB/steps, published: 10{}}}\n"
    rows = entry.format("some", ", seeds: [0, 1, 2]")
    rows += entry.format("sound", ", rule: at_most")
    result = cli("table", write(tmp_path, rows))
    assert (result.code, result.err) == (0, "")
    text = Path("logs/table/version_0/table.md").read_text()
    assert "| some | 10 | nan | 3 | diverged |" in text
    assert "| sound | 10 | 10 | 1 | reproduced |" in text
    csv = Path("logs/table/version_0/table.csv").read_text().splitlines()
    assert csv[1].endswith(",10.0 nan 10.0")


def test_rows_are_written_as_soon_as_they_are_done(tmp_path, cli, monkeypatch):  # noqa: F811
    run = sources.run_trajectories

    def broken(arguments, seed):
        if seed:
            raise RuntimeError("nobody expected this")
        return run(arguments, seed)

    watched(monkeypatch, broken)
    entry = "  - {{name: {}, study: study.yaml, metric: HB/best, published: 1{}}}\n"
    rows = entry.format("one", "") + entry.format("two", ", seeds: [1]")
    with pytest.raises(RuntimeError, match="nobody"):
        cli("table", write(tmp_path, rows))
    text = Path("logs/table/version_0/table.md").read_text()
    assert "| one |" in text and "| two |" not in text
    assert Path("logs/table/version_0/table.csv").read_text().count("\n") == 2


def test_ctrl_c_in_the_first_row_leaves_nothing(tmp_path, cli, monkeypatch):  # noqa: F811
    def interrupted(arguments, seed):
        raise KeyboardInterrupt

    watched(monkeypatch, interrupted)
    entry = "  - {name: one, study: study.yaml, metric: HB/best, published: 1}\n"
    result = cli("table", write(tmp_path, entry))
    assert result.code == 130 and "interrupted after 0 of 1 rows" in result.out
    assert not Path("logs").exists()


def test_ctrl_c_keeps_the_rows_that_are_done(tmp_path, cli, monkeypatch):  # noqa: F811
    entry = "  - {{name: {}, study: study.yaml, metric: HB/best, published: 1{}}}\n"
    rows = entry.format("one", "") + entry.format("two", ", seeds: [1]")
    run = sources.run_trajectories

    def interrupted(arguments, seed):
        if seed:
            raise KeyboardInterrupt
        return run(arguments, seed)

    watched(monkeypatch, interrupted)
    result = cli("table", write(tmp_path, rows))
    assert result.code == 130 and "interrupted after 1 of 2 rows" in result.out
    text = Path("logs/table/version_0/table.md").read_text()
    assert "| one |" in text and "| two |" not in text


def test_a_row_that_fails_keeps_those_before_it(tmp_path, cli):  # noqa: F811
    entry = "  - {{name: {}, study: study.yaml, metric: HB/{}, published: 1}}\n"
    rows = entry.format("one", "best") + entry.format("two", "worst")
    result = cli("table", write(tmp_path, rows))
    assert result.code == 2 and "two: there is no metric 'HB/worst'" in result.error
    text = Path("logs/table/version_0/table.md").read_text()
    assert "| one |" in text and "| two |" not in text


ENTRY = """\
  - {name: a, study: study.yaml, metric: HB/best, published: 0.5471, rule: relative,
     tolerance: 1.0e-3, seeds: [3, 4], arguments: [--runs=2]SMOKE, note: because}
"""


@pytest.mark.parametrize(
    "budget, seeds, steps, verdict",
    [("full", [3, 4], None, "reproduced"), ("smoke", [3], "--steps=2", "smoke")],
)
def test_the_budget_cuts_flags_seeds_and_verdict(
    budget,
    seeds,
    steps,
    verdict,
    tmp_path,
    cli,  # noqa: F811
    monkeypatch,
):
    calls, run = [], sources.run_trajectories
    watched(monkeypatch, lambda *args: (calls.append(args), run(*args))[1])
    file = write(tmp_path, ENTRY.replace("SMOKE", ", smoke: [--steps=2]"))
    result = cli("table", file, "--budget", budget)
    assert (result.code, result.err) == (0, "")
    assert [seed for _, seed in calls] == seeds
    for arguments, _ in calls:
        assert arguments[2:] == ["--runs=2"] + ([steps] if steps else [])
    text = Path("logs/table/version_0/table.md").read_text()
    # F = x^2/2 + ...: 3 (9/10)^steps, and the other coordinate ends at 0
    ours = 0.5 * 9 * 0.9 ** (2 * (2 if steps else 10))
    assert f"| a | 0.5471 | {ours:.5g} | {len(seeds)} | {verdict} | because |" in text
    assert text.splitlines()[0] == ("# T, cut short" if steps else "# T")
    assert "| runs | verdict | reason |" in text


def test_the_full_budget_is_the_default(tmp_path, cli):  # noqa: F811
    result = cli("table", write(tmp_path, ENTRY.replace("SMOKE", "")))
    assert result.code == 0 and "reproduced" in result.out


def test_a_row_that_cannot_be_cut_is_one_line(tmp_path, cli):  # noqa: F811
    file = write(tmp_path, ENTRY.replace("SMOKE", ""))
    result = cli("table", file, "--budget=smoke")
    assert result.code == 2
    assert "a: has no key smoke" in result.error
    assert not Path("logs").exists()


def test_a_table_cuts_all_rows_alike_but_for_those_with_their_own(tmp_path):
    own = ENTRY.replace("name: a", "name: b").replace("SMOKE", ", smoke: []")
    file = write(tmp_path, ENTRY.replace("SMOKE", "") + own)
    file.write_text(f"smoke: [--steps=2]\n{file.read_text()}")
    _, rows = tables.read(file)
    assert [row.cut().arguments for row in rows] == [
        ("--runs=2", "--steps=2"),
        ("--runs=2",),
    ]
