"""Searches by the command `tune` that are interrupted or killed, and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import cli  # noqa: F401
from tests.tune.commands import SEARCH
from tune import runs


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures cost more than the searches here: only `searched` draws some."""
    monkeypatch.setattr(runs, "_draw", lambda *args: None)


INTERRUPTED = SEARCH.replace("samples: 3", "samples: 4") + (
    "scheduler: {class_path: tune.ASHA, init_args: {reduction_factor: 2}}\n"
    "searcher: {class_path: tune.Optuna, init_args: {startup: 2}}\n"
    'space: {lr: "LogUniform(0.01, 0.5)", extra_energy: "Uniform(0, 2)"}\n'
    "repeat: {seeds: [1, 2]}\n"
)


def assert_same_results(one, other):
    """Tables of the same trials, wherever and however long they ran."""
    for name in ("results.csv", "repeats.csv"):
        drop = ["seconds", "folder"] if name == "results.csv" else []
        tables = [
            pd.read_csv(folder / name).drop(columns=drop) for folder in (one, other)
        ]
        pd.testing.assert_frame_equal(*tables, rtol=0, atol=0)
    texts = [(folder / "best_BBI.yaml").read_text() for folder in (one, other)]
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of the search that nobody interrupted, and its training steps."""
    pytest.importorskip("optuna", reason="Optuna needs the package optuna")
    from lightning_ecd.__main__ import main

    place, before = tmp_path_factory.mktemp("whole"), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.chdir(place)
        patch.setattr(runs, "_draw", lambda *args: None)
        Path("search.yaml").write_text(INTERRUPTED)
        calls = interrupting_at(None, patch)
        main(["tune", "--config", "search.yaml"])
    assert os.getcwd() == before
    return place / "logs/search/version_0", len(calls)


def interrupting_at(step, patch):
    """Press Ctrl-C in a training step; returns a list of the steps made."""
    from modules import Classifier

    training_step, calls = Classifier.training_step, []

    def interrupting(self, *args):
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return training_step(self, *args)

    patch.setattr(Classifier, "training_step", interrupting)
    return calls


@pytest.mark.parametrize("share", [0.1, 0.4, 0.95], ids=["first", "third", "repeat"])
def test_ctrl_c_says_how_to_go_on(share, whole, tmp_path, cli, monkeypatch):  # noqa: F811
    (tmp_path / "search.yaml").write_text(INTERRUPTED)
    with monkeypatch.context() as patch:
        interrupting_at(int(share * whole[1]), patch)
        result = cli("tune", "--config", "search.yaml")
    assert result.code == 130
    assert "interrupted; go on with" in result.out
    hint = result.out.splitlines()[-1].split()
    assert hint[:3] == ["lightning-ecd", "tune", "--restore"]
    assert cli(*hint[1:]).code == 0
    assert_same_results(whole[0], tmp_path / "logs/search/version_0")


def test_kill_9_loses_nothing(whole, tmp_path, cli):  # noqa: F811
    (tmp_path / "search.yaml").write_text(INTERRUPTED)
    folder = tmp_path / "logs/search/version_0"
    journal, end = folder / "BBI" / "trials.jsonl", time.monotonic() + 120
    command = [sys.executable, "-m", "lightning_ecd", "tune", "--config", "search.yaml"]
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
        while time.monotonic() < end and process.poll() is None:
            if journal.is_file() and journal.read_text().count("\n") >= 6:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "output").read_text()
    assert not (folder / "results.csv").exists()
    lines = journal.read_text().splitlines()
    result = cli("tune", "--restore", folder)
    assert (result.code, result.err) == (0, "")
    kept = journal.read_text().splitlines()
    assert kept[: len(lines) - 1] == lines[:-1] and len(kept) > len(lines)
    assert_same_results(whole[0], folder)
