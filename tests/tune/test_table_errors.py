"""Bad tables and arguments of the command `table` are one line."""

import pytest

from lightning_ecd.errors import UserError
from tests.cli.conftest import cli  # noqa: F401
from tests.tune.test_tables import ENTRY, TABLES, write
from tune import tables


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("  - {name: a, metric: m, published: 1}\n", "either a study or an experiment"),
        (
            "  - {name: a, metric: m, published: 1, study: none.yaml}\n",
            "there is no study none.yaml",
        ),
        (
            "  - {name: a, metric: m, published: 1, study: study.yaml, sedes: [1]}\n",
            "unknown key 'sedes'",
        ),
        (
            "  - {name: a, metric: m, published: 1, study: study.yaml, rule: near}\n",
            "rule must be one of statistical",
        ),
        ("  - {name: a, study: study.yaml, published: 1}\n", "metric"),
        (
            "  - {name: a, study: study.yaml, metric: m, published: 1, smoke: --a=1}\n",
            "smoke must be a list",
        ),
        (
            "  - {name: a, study: theory.yaml, metric: m, published: 1,\n"
            "     seeds: [0, 1]}\n",
            "several seeds need a {seed} in the arguments",
        ),
        (
            "  - {name: a, study: study.yaml, metric: m, published: much}\n",
            "could not convert string to float: 'much'",
        ),
    ],
)
def test_bad_tables_are_refused(rows, message, tmp_path):
    study = "study: {class_path: lightning_ecd.theory.studies.GainMap}\n"
    (tmp_path / "theory.yaml").write_text(study)
    with pytest.raises(UserError, match=message):
        tables.read(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "there is no table nowhere.yaml"),
        ([TABLES[0], "--rows=zzz"], "--rows: no row of"),
        ([TABLES[0], "--sorted"], "--sorted"),
        ([TABLES[0], "--budget=tiny"], "--budget"),
    ],
)
def test_bad_arguments_are_one_line(arguments, words, cli):  # noqa: F811
    result = cli("table", *arguments)
    assert result.code == 2
    assert words in result.error


def test_an_unknown_metric_names_those_that_exist(tmp_path, cli):  # noqa: F811
    rows = "  - {name: a, study: study.yaml, metric: HB/worst, published: 1}\n"
    result = cli("table", write(tmp_path, rows))
    assert result.code == 2
    assert "no metric 'HB/worst'" in result.error and "HB/best" in result.error


@pytest.mark.parametrize(
    ("broken", "place"),
    [("table.yaml", "line 3, column 13"), ("study.yaml", "line 7, column 1")],
)
def test_broken_yaml_is_one_line_with_its_place(broken, place, tmp_path, cli):  # noqa: F811
    file = write(tmp_path, ENTRY.replace("SMOKE", ""))
    text = (tmp_path / broken).read_text()
    if broken == "table.yaml":  # the row's mapping gets a second colon
        text = text.replace("{name: a", "{name: a: b", 1)
    else:
        text += "}\n"
    (tmp_path / broken).write_text(text)
    result = cli("table", file)
    assert result.code == 2
    assert f"{tmp_path / broken}, {place}: " in result.error


def test_a_row_without_keys_is_refused(tmp_path):
    with pytest.raises(UserError, match="row 1: a row has keys, got 'lowest'"):
        tables.read(write(tmp_path, "  - lowest\n"))


def test_a_key_that_no_table_has_is_refused(tmp_path):
    file = write(tmp_path, ENTRY.replace("SMOKE", ""))
    file.write_text(f"budget: smoke\n{file.read_text()}")
    with pytest.raises(UserError, match="has the keys title, rows and perhaps smoke"):
        tables.read(file)


def test_what_a_study_refuses_names_the_row(tmp_path, cli):  # noqa: F811
    file = write(tmp_path, ENTRY.replace("SMOKE", "").replace("--runs=2", "--runs=0"))
    result = cli("table", file)
    assert result.code == 2
    assert "error: a: runs" in result.error
