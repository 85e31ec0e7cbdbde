"""Statistics and tables of repeated runs."""

import math

import pytest

from lightning_ecd.errors import UserError
from tune import repeats
from tune.repeats import Repeats, compare
from tune.statistics import holm

NAN, INF = math.nan, math.inf


def group(arm, *values, metric="m"):
    return Repeats(arm, metric, tuple(range(len(values))), values)


def test_moments_are_those_of_the_runs_that_did_not_diverge():
    runs = group("a", 1.0, NAN, 2.0, 6.0, INF)
    assert (runs.diverged, runs.mean) == (2, 3.0)
    # deviations -2, -1, 3: variance 14/2 = 7
    assert runs.std == pytest.approx(7**0.5, rel=1e-15)
    assert runs.error == pytest.approx((7 / 3) ** 0.5, rel=1e-15)


def test_moments_of_too_few_runs_are_nan():
    one, none = group("a", 0.5, NAN), group("a", NAN)
    assert one.mean == 0.5 and math.isnan(one.std) and math.isnan(one.error)
    assert math.isnan(none.mean) and math.isnan(none.std) and none.diverged == 1


def test_equal_values_have_no_spread():
    assert group("a", 0.1, 0.1, 0.1).std == 0.0


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_squares_neither_vanish_nor_overflow(unit):
    runs = group("a", 1 * unit, 2 * unit, 6 * unit)
    assert runs.std == pytest.approx(7**0.5 * unit, rel=1e-14)


@pytest.mark.parametrize(
    ("seeds", "values"), [((0, 1), (1.0,)), ((2, 2), (1.0, 3.0)), ((0,), (1.0, 3.0))]
)
def test_a_run_has_one_seed_and_one_value(seeds, values):
    with pytest.raises(ValueError, match="a: seeds must differ, one per value, got"):
        Repeats("a", "m", seeds, values)


def test_the_first_of_a_metric_is_what_the_others_are_compared_with():
    groups = [
        *(group("A", 0.0, 2.0), group("A", 1.0, 1.0, metric="n")),
        *(group("B", 3.0, 5.0), group("B", 5.0, 7.0, metric="n")),
    ]
    found = [
        (a.arm, b.arm, a.metric, test.difference) for a, b, test, _ in compare(groups)
    ]
    assert found == [("B", "A", "m", 3.0), ("B", "A", "n", 5.0)]


def test_everything_is_compared_with_every_group_of_another_search():
    ours = [group("A", 0.0, 2.0), group("B", 3.0, 5.0)]
    theirs = [group("A", 10.0, 12.0), group("C", 1.0, 1.0), group("A", 1.0, metric="n")]
    compared = compare(ours, theirs)
    found = [(a.arm, b.arm, test.difference) for a, b, test, _ in compared]
    assert found == [
        ("A", "A", -10.0),
        ("A", "C", 0.0),
        ("B", "A", -7.0),
        ("B", "C", 3.0),
    ]
    assert [p for *_, p in compared] == holm([test.p for _, _, test, _ in compared])
    with pytest.raises(UserError, match="against: no runs of m; there are n"):
        compare(ours, theirs[2:])


def test_the_table_of_two_arms():
    # difference 3 ± √2 · 4.3027, p = 0.168 as above
    text = repeats.markdown([group("A|B", 0.0, 2.0, NAN), group("C", 3.0, 5.0)])
    title, _, says = text.split("\n")[:3]
    assert title == "# Repeated runs" and "Welch" in says
    assert text.endswith(
        "| arm | metric | runs | diverged | mean ± std | s.e. | minus | difference "
        "| 95 % interval | p |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| A\\|B | m | 3 | 1 | 1 ± 1.4 | 1 |  |  |  |  |\n"
        "| C | m | 2 | 0 | 4 ± 1.4 | 1 | A\\|B | 3 | -3.08 to 9.08 | 0.17 |\n"
    )


def test_more_than_one_comparison_is_corrected():
    others = [group("B", 3.0, 5.0), group("C", 0.0, 2.0)]
    header, first, *lines = repeats.lines([group("A", 0.0, 2.0), *others])
    assert header[-2:] == ["p", "Holm p"]
    assert first == ["A", "m", "2", "0", "1 ± 1.4", "1", *[""] * 5]
    assert [line[-2:] for line in lines] == [["0.17", "0.34"], ["1", "1"]]


def test_the_groups_of_another_search_are_marked():
    table = repeats.lines([group("A", 3.0, 5.0)], [group("A", 0.0, 2.0)])
    assert [line[0] for line in table[1:]] == ["A (against)", "A"]
    assert table[2][6:8] == ["A (against)", "3"]


def test_a_single_arm_and_none_at_all():
    assert len(repeats.lines([group("A", 3.0)])) == 2
    assert len(repeats.lines([])) == 1


def test_the_terminal_shows_names_in_brackets(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    repeats.show([group("[bold]", 0.0, 2.0), group("C", 3.0, 5.0)])
    out = capsys.readouterr().out
    assert "[bold]" in out and "-3.08 to 9.08" in out and "Welch" in out


def test_a_narrow_terminal_cuts_nothing_off(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    repeats.show([group("A", 0.0, 2.0), group("C", 0.12345, 0.1234)])
    assert "…" not in capsys.readouterr().out


def test_what_is_written_is_read_to_the_bit(tmp_path):
    groups = [
        Repeats("ECD, η = 1", "test/loss", (3, 1), (0.1 + 0.2, 5e-324)),
        Repeats('the "other"|', "test/loss", (3, 4, 5), (NAN, -INF, 1 / 3)),
        Repeats("ECD, η = 1", "test/accuracy", (3,), (1.0,)),
    ]
    repeats.write(tmp_path, groups)
    file = tmp_path / "repeats.csv"
    assert "nan" in file.read_text(encoding="utf-8")
    assert repr(repeats.read(file)) == repr(groups)
    assert (tmp_path / "repeats.md").read_text(encoding="utf-8") == (
        repeats.markdown(groups)
    )


def test_runs_are_kept_where_there_is_nothing_to_compare_with(tmp_path):
    with pytest.raises(UserError, match="no runs of m"):
        repeats.write(tmp_path, [group("A", 1.0)], [group("A", 1.0, metric="n")])
    assert len(repeats.read(tmp_path / "repeats.csv")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("arm,metric,value\nA,m,1\n", "there is no column 'seed'"),
        ("arm,metric,seed,value\nA,m,0,1\nA,m,1,much\n", "line 3: .*'much'"),
        ("arm,metric,seed,value\nA,m,0\n", "line 2: could not convert"),
        ("arm,metric,seed,value\nA,m,0.5,1\n", "line 2: invalid literal .*'0.5'"),
        ("arm,metric,seed,value\nA,m,0,1\nA,m,0,2\n", "line 3: A has seed 0 twice"),
        ("arm,metric,seed,value\n", "there are no runs"),
        ("", "there are no runs"),
        (b"\xff\xfe\x00", "utf-8"),
    ],
)
def test_bad_files_are_refused(content, message, tmp_path):
    file = tmp_path / "other.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"other.csv.*{message}"):
        repeats.read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file .*nowhere.csv"):
        repeats.read(tmp_path / "nowhere.csv")
