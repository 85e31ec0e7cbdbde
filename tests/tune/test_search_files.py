"""Every file of configs/search parses, can be built, and runs."""

import csv
import math
import re
from pathlib import Path

import pytest

from tests.cli.conftest import SHORT
from tests.cli.test_configs import files, missing, stem
from tune import runs
from tune.command import build, read
from tune.searchers import Grid, Random

FILES = files("search")
#: What makes the trials tiny: they come last among the arguments, and count.
TINY = {"study": ["--steps=3"], "experiment": [*SHORT, "--data.batch_size=4"]}


@pytest.fixture(params=FILES, ids=stem)
def settings(request, tmp_path, monkeypatch):
    """The settings of a search, in an empty folder; trials are run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
    found, name = read(["--config", str(request.param)])
    assert name == request.param.stem
    if found["experiment"] and (reason := missing(Path(found["experiment"]))):
        pytest.skip(reason)
    return {**found, "backend": "local"}


@pytest.mark.parametrize("file", FILES, ids=stem)
def test_every_search_states_published_and_own_numbers(file):
    head = re.match(r"(#.*\n)+", file.read_text())[0]
    for word in ("Published", "Ours"):
        assert re.search(rf"^# {word}\b.*: .*\w", head, re.M)
    assert "TODO" not in head


def test_every_search_and_its_repeats_can_be_built(settings):
    search = build(settings)
    for more in ([], search.repeat.arguments if search.repeat else []):
        jobs = search.jobs(search.settings(more))
        assert list(jobs) == list(search.optimizers)
        assert all(job.samples >= 2 for job in jobs.values())


def test_published_settings_lie_in_the_space_of_their_search(settings):
    search = build(settings)
    for name, own in search.settings().items():
        coordinates = search._space(name, own).coordinates
        for key, value in search.optimizers[name].published.items():
            values = value if isinstance(value, list) else [value]
            keys = [key] if values != value else [f"{key}[{i}]" for i in (0, 1)]
            for coordinate, number in zip(keys, values, strict=True):
                assert number in coordinates[coordinate], (name, coordinate)


def test_every_search_runs(settings, tmp_path):
    kind = "study" if settings["study"] else "experiment"
    settings["arguments"] = [*(settings["arguments"] or []), *TINY[kind]]
    settings |= {"samples": 2, "repeat": None}
    search = build(settings)
    if isinstance(search.searcher, Grid):
        search.searcher = Random()
    outcome = runs.run(search, tmp_path / "search")
    assert not [record.error for record in outcome.records if record.error]
    with open(tmp_path / "search" / "results.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 2 * len(search.optimizers)
    for name, arm in search.optimizers.items():
        assert name in outcome.best
        if arm.published:
            assert math.isfinite(outcome.published[name].metrics[search.metric])
