"""Searches in this process that are interrupted lose nothing and go on."""

import shutil

import pytest

from lightning_ecd.errors import UserError
from tests.tune.toys import (
    Once,
    Scripted,
    Walk,
    interrupted,
    journal,
    run,
    seen,
    statuses,
)
from tune import ASHA, HyperOpt, MedianStopping, Optuna, Random, Space

SEARCHES = {
    "optuna": {"searcher": Optuna(startup=3), "scheduler": ASHA(reduction_factor=2)},
    "hyperopt": {
        "searcher": HyperOpt(startup=3),
        "scheduler": MedianStopping(min_samples_required=2),
    },
}


@pytest.fixture(params=SEARCHES)
def settings(request):
    """A search whose decisions depend on all that happened before."""
    pytest.importorskip(request.param, reason=f"needs the package {request.param}")
    return {**SEARCHES[request.param], "samples": 7}


@pytest.fixture
def whole(tmp_path, settings):
    """Folder, records and steps of a search that nobody interrupted."""
    walk = Walk()
    records = run(tmp_path / "whole", walk, **settings)
    assert {"stopped", "completed"} == set(statuses(records))
    return tmp_path / "whole", list(map(seen, records)), walk.walked


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_an_interrupted_search_goes_on_as_if_nothing_had_been(
    share, cut, settings, whole, tmp_path
):
    """Also if the end of the journal's last line is lost."""
    expected, walked = whole[1:]
    walk = Walk(Once(*walked[int(share * len(walked))], KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", walk, **settings)
    text = (tmp_path / "cut" / "trials.jsonl").read_text()
    (tmp_path / "cut" / "trials.jsonl").write_text(text[: len(text) - cut])
    records = run(tmp_path / "cut", walk, **settings)
    assert list(map(seen, records)) == expected
    if cut == 0:
        assert walk.walked == walked  # nothing was done twice
    assert strip(journal(tmp_path / "cut")) == strip(journal(whole[0]))


def strip(events):
    """Events without their times."""
    for event in events:
        event.get("report", {}).pop("time_total_s", None)
    return events


def test_it_does_not_matter_when_it_was_interrupted(settings, whole, tmp_path):
    for folder in interrupted(tmp_path, **settings):
        records = run(folder, Walk(), **settings)
        assert list(map(seen, records)) == whole[1], folder.name


def test_it_does_not_matter_how_much_of_the_journal_is_lost(settings, whole, tmp_path):
    """The checkpoints are those of the whole search, ahead of the journal."""
    folder, expected, _ = whole
    lines = (folder / "trials.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines) + 1):
        shutil.copytree(folder, tmp_path / f"kept_{kept}")
        torn = lines[kept][: len(lines[kept]) // 2] if kept < len(lines) else ""
        file = tmp_path / f"kept_{kept}" / "trials.jsonl"
        file.write_text("".join(lines[:kept]) + torn)
        records = run(tmp_path / f"kept_{kept}", Walk(), **settings)
        assert list(map(seen, records)) == expected, f"{kept} lines kept"
        assert len(journal(file.parent)) == len(lines)


def test_an_error_while_a_checkpoint_is_written_loses_no_report(tmp_path):
    whole = run(tmp_path / "whole", Walk())
    full = []

    class Full(Walk):
        def __call__(self, trial):
            report = trial.report

            def told(metrics, save, finished):
                def failing(folder):
                    if trial.number == 1 and not full:
                        full.append(folder)
                        raise OSError("no space left")
                    save(folder)

                report(metrics, failing, finished)

            trial.report = told
            super().__call__(trial)

    records = run(tmp_path / "full", Full())
    assert full
    assert list(map(seen, records)) == list(map(seen, whole))
    told = [e for e in journal(tmp_path / "full") if "report" in e and e["trial"] == 1]
    assert [e["report"]["training_iteration"] for e in told] == [1, 2, 3, 4]


def test_a_finished_search_runs_nothing_again(settings, whole):
    walk, before = Walk(), (whole[0] / "trials.jsonl").stat()
    records = run(whole[0], walk, **settings)
    assert list(map(seen, records)) == whole[1]
    assert walk.walked == []
    after = (whole[0] / "trials.jsonl").stat()  # never rewritten: it could be lost
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


def test_a_search_can_be_made_longer(settings, tmp_path):
    short = run(tmp_path / "short", Walk(), **settings | {"samples": 4})
    longer = run(tmp_path / "short", Walk(), **settings)
    assert list(map(seen, longer))[:4] == list(map(seen, short))
    assert list(map(seen, longer)) == list(
        map(seen, run(tmp_path / "whole", Walk(), **settings))
    )


@pytest.mark.parametrize(
    "other",
    [
        {"searcher": Random(seed=1)},
        {"space": Space({"x": "Uniform(-1, 2)", "y": "LogUniform(1e-3, 1)"})},
        {"space": Space({"x": "Uniform(-1, 1)"})},
    ],
)
def test_a_changed_search_is_refused(other, tmp_path):
    run(tmp_path, Scripted([1.0], [2.0]), samples=2)
    before = (tmp_path / "trials.jsonl").read_bytes()
    with pytest.raises(UserError, match="0000: the search now suggests .* cannot go"):
        run(tmp_path, Scripted([1.0], [2.0]), samples=2, **other)
    assert (tmp_path / "trials.jsonl").read_bytes() == before
