"""Fits on a cluster: resumed to the bit, populations, shared data, GPUs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import EXPERIMENT, SHORT
from tests.tune.tasks import Accidents
from tune import Grid, Resources, cluster, local
from tune.search import Arm, Search

THREE = ["--trainer.max_epochs=3"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """As in workers: sums depend on the number of threads. Lightning sets the seed."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def nobody(record):
    """Watches a search, and looks away."""


def fits(experiment=EXPERIMENT, flags=(*SHORT, *THREE), **settings):
    """The job of a search on the digits, by validation accuracy."""
    arms = {"BBI": Arm(space={"lr": [0.2]})}
    settings = {"optimizers": arms, "searcher": Grid(), **settings}
    flags = list(flags)
    search = Search("val/accuracy", "max", experiment, arguments=flags, **settings)
    (found,) = search.jobs(search.settings()).values()
    return found


def test_a_fit_whose_worker_dies_ends_as_if_nothing_had_been(machine, tmp_path, log):
    whole = fits()
    expected = local.run(whole, tmp_path / "whole", nobody)
    objective = Accidents(whole.objective, log, {0: "die"})
    resources = Resources(cpus=0.5)
    cut = replace(whole, objective=objective, resources=resources, concurrent=1)
    records = cluster.run(cut, tmp_path / "cut", nobody)
    assert len(list(log.glob("accident*"))) == 1
    for record, other in zip(records, expected, strict=True):
        assert (record.status, record.reports) == ("completed", other.reports)
        assert record.metrics == other.metrics  # to the bit
        assert_same_logs(Path(record.folder), Path(other.folder))


def assert_same_logs(folder, other):
    """All rows once, and the settings."""
    metrics, others = ((f / "metrics.csv").read_text() for f in (folder, other))
    assert metrics == others
    assert (folder / "config.yaml").read_text() == (other / "config.yaml").read_text()
