"""The table of a running search, and which trial is the best."""

import io
import math

import pytest
from rich.console import Console

from tune.live import Board, best_of, shown
from tune.trial import Record


def record(number, loss=None, status="completed", **settings):
    metrics = {} if loss is None else {"loss": loss}
    values = settings.pop("values", {"lr": 0.1})
    return Record("BBI", number, values, status, metrics, **settings)


# -- the best ----------------------------------------------------------------------


def test_the_best_is_the_lowest_or_the_highest():
    records = [record(0, 2.0), record(1, 1.0), record(2, 3.0)]
    assert best_of(records, "loss", "min") is records[1]
    assert best_of(records, "loss", "max") is records[2]


def test_trials_without_a_finite_value_are_not_the_best():
    records = [
        record(0, math.nan, "diverged"),
        record(1, -math.inf, "diverged"),
        record(2, None, "failed"),
        record(3, 5.0),
    ]
    assert best_of(records, "loss", "min") is records[3]
    assert best_of(records[:3], "loss", "min") is None
    assert best_of([], "loss", "min") is None


def test_a_stopped_trial_is_the_best_only_among_stopped_ones():
    stopped, completed = record(0, 1.0, "stopped"), record(1, 2.0)
    assert best_of([stopped, completed], "loss", "min") is completed
    assert best_of([stopped, record(2, 3.0, "stopped")], "loss", "min") is stopped


def test_of_equals_the_first_is_the_best():
    records = [record(0, 1.0), record(1, 1.0)]
    assert best_of(records, "loss", "min") is records[0]
    assert best_of(records, "loss", "max") is records[0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1e-7, "1e-07"),
        (3, "3"),
        (True, "True"),
        ("cube", "cube"),
        ([0.9, 0.99999], "[0.9, 1]"),
        (math.nan, "nan"),
        (None, "none"),
    ],
)
def test_values_are_short(value, text):
    assert shown(value) == text


# -- the board ---------------------------------------------------------------------


def board_of(terminal, **settings):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    defaults = {"arm": "BBI", "metric": "loss", "mode": "min", "samples": 9}
    return Board(**(defaults | settings), console=console)


def text_of(renderable):
    console = Console(file=io.StringIO(), width=200)
    console.print(renderable)
    return console.file.getvalue()


def test_where_nobody_looks_every_trial_is_a_line_once():
    board = board_of(False)
    with board:
        trial = record(0, 2.0, "running", reports=1)
        board(trial)
        trial.status, trial.seconds = "completed", 1.25
        board(trial)
        board(trial)
        board(record(1, math.nan, "diverged"))
        board(record(2, None, "failed", error="OSError: no such [file]"))
    lines = board.console.file.getvalue().splitlines()
    assert len(lines) == 3
    words = "BBI: trial 0 lr 0.1 reports 1 loss 2 seconds 1.2 status completed"
    assert lines[0].split() == words.split()
    assert "diverged" in lines[1] and "nan" in lines[1]
    assert lines[2].endswith("failed OSError: no such [file]")


def test_the_table_shows_the_latest_trials_and_the_best():
    board = board_of(False, samples=30)
    for number in range(20):
        board(record(number, float((number - 1) ** 2), reports=3))
    text = text_of(board.table())
    assert "20 of 30 trials" in text and "min left" in text
    rows = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert rows == ["1", *map(str, range(8, 20))]


def test_the_table_is_there_before_any_trial():
    board = board_of(False)
    assert text_of(board.table()).strip() == ""
    board(record(0, None, "running"))
    text = text_of(board.table())
    assert "running" in text and "0 of 9 trials" in text


def test_brackets_are_text():
    board, words = board_of(False), "KeyError: [/red] [0]"
    board(record(0, None, "failed", error=words, values={"kind": "[/a]"}))
    for text in (text_of(board.table()), board.console.file.getvalue()):
        assert words in text and "[/a]" in text


def test_on_a_terminal_the_table_is_live_and_ends():
    with board_of(True) as board:
        board(record(0, 2.0))
        assert board._live is not None and board._live.is_started
    assert not board._live.is_started
    assert "1 of 9 trials" in board.console.file.getvalue()
