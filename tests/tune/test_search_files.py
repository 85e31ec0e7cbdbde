"""Every file of configs/search parses, can be built, and its trials run."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_ecd import pool
from tests.cli.conftest import SHORT
from tests.cli.test_configs import files, missing, stem
from tests.tune.toys import nobody
from tune import Grid, Random, Space, local
from tune.command import build, read

FILES = files("search")
#: What makes the trials tiny: they come last among the arguments, and count.
TINY = {"study": ["--steps=3"], "experiment": [*SHORT, "--data.batch_size=4"]}
#: What makes the runs of a window few, where the data are windows.
FEW = ["--data.runs=2", "--data.val_runs=2", "--data.test_runs=2", "--data.steps=20"]
#: By experiment, what makes steps of seconds short, stable, and spares whitening.
TINIER = {
    "entropysgd_mnistconv": ["--data.batch_size=32"],  # stable at lr 1
    "entropysgd_allcnn": [
        *("--data.whiten=false", "--data.batch_size=4", "--data.eval_batch_size=4"),
        *("--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=1"),
    ],
}


@pytest.fixture(params=FILES, ids=stem)
def settings(request, tmp_path, monkeypatch):
    """The settings of a search, in an empty folder; trials are run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # Lightning sets it: undone after
    found, name = read(["--config", str(request.param)])
    assert name == request.param.stem
    if found["experiment"] and (reason := missing(Path(found["experiment"]))):
        pytest.skip(reason)
    pool.open_()  # data are read once
    yield {**found, "backend": "local"}
    pool.close()


def data_of(experiment):
    """Return the file that an experiment takes its data from."""
    text = Path(experiment).read_text() if experiment else ""
    return "".join(re.findall(r"^data: (.*)$", text, re.M))


@pytest.mark.parametrize("file", FILES, ids=stem)
def test_every_search_states_published_and_own_numbers(file):
    head = re.match(r"(#.*\n)+", file.read_text())[0]
    for word in ("Published", "Ours"):
        assert re.search(rf"^# {word}\b.*\w", head, re.M)
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
            numbers = {key: value}
            if isinstance(value, list):
                numbers = {f"{key}[{i}]": number for i, number in enumerate(value)}
            for coordinate, number in numbers.items():
                assert number in coordinates[coordinate], (name, coordinate)


def test_a_random_and_the_published_trial_of_every_optimizer_run(settings, tmp_path):
    kind = "study" if settings["study"] else "experiment"
    own = TINIER.get(Path(settings["experiment"] or "").stem, [])
    streams = re.search("streams|quadratics", data_of(settings["experiment"]))
    tiny = [*SHORT, *FEW] if streams else [*TINY[kind], *own]
    settings["arguments"] = [*(settings["arguments"] or []), *tiny]
    search = build(settings)
    for name, job in search.jobs(search.settings()).items():
        published = search.optimizers[name].published
        space = Space({key: [value] for key, value in published.items()})
        whatever = replace(job, scheduler=None, constraint=None)
        tiny = [replace(whatever, samples=1, searcher=Random())]
        if published:
            tiny.append(replace(tiny[0], space=space, searcher=Grid()))
        for number, one in enumerate(tiny):
            (record,) = local.run(one, tmp_path / f"{name}_{number}", nobody)
            assert record.error == ""
            if record.status != "diverged" or number > 0:  # drawn from a wide space
                assert record.status == "completed"
                assert math.isfinite(record.metrics[search.metric])
