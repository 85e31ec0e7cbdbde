"""Schedulers, through searches of scripted losses: who ends, and when."""

import math

import pytest

from lightning_ecd.errors import UserError
from tests.tune.toys import SPACE, Scripted, job, nobody
from tune import ASHA, MedianStopping, PopulationBased, local


def run(folder, scheduler, *losses, **settings):
    scripted = Scripted(*losses)
    settings = {"samples": len(losses), **settings}
    return local.run(job(scripted, scheduler=scheduler, **settings), folder, nobody)


def ends(records):
    return [(record.status, record.reports) for record in records]


def test_without_a_scheduler_all_trials_run_to_their_end(tmp_path):
    records = run(tmp_path, None, [1.0, 2.0], [9.0, 8.0, 7.0])
    assert ends(records) == [("completed", 2), ("completed", 3)]


def test_halving_ends_what_is_worse_than_the_best_half(tmp_path):
    """Rungs at 1, 2 and 4 reports; a median of what came to a rung before decides.

    Trial 1 is worse than 0 at once. At the first rung stand 4, 9 and then 3; trial 3
    (5 > median 4) ends there, trial 4 (3.5) passes, but at the second rung stand 3
    and 2, and 3 > 2.5. Trial 5 is as good as the median is (3.75 of 3, 3.5, 4, 5, 9:
    4): it passes, and passes on.
    """
    records = run(
        tmp_path,
        ASHA(grace_period=1, reduction_factor=2),
        [4.0, 3.0, 3.0, 3.0],
        [9.0, 1.0, 1.0, 1.0],
        [3.0, 2.0, 2.0, 2.0],
        [5.0, 0.0],
        [3.5, 3.0, 3.0, 3.0],
        [4.0, 1.0, 1.0, 1.0],
    )
    assert ends(records) == [
        *[("completed", 4), ("stopped", 1), ("completed", 4)],
        *[("stopped", 1), ("stopped", 2), ("completed", 4)],
    ]


def test_halving_spares_the_grace_period(tmp_path):
    scheduler = ASHA(grace_period=3, reduction_factor=2)
    records = run(tmp_path, scheduler, [1.0] * 4, [9.0] * 4)
    assert ends(records) == [("completed", 4), ("stopped", 3)]


def test_a_reduction_factor_of_four_keeps_a_quarter(tmp_path):
    """After 1, 2, 3 and 4 the best quarter lies below 1.75."""
    grid = [[loss, loss] for loss in (4.0, 3.0, 2.0, 1.0, 1.8, 1.5)]
    records = run(tmp_path, ASHA(reduction_factor=4), *grid)
    completed = [record.number for record in records if record.status == "completed"]
    assert completed == [0, 1, 2, 3, 5]


def test_a_maximum_is_looked_for_the_other_way(tmp_path):
    records = run(tmp_path, ASHA(reduction_factor=2), [5.0] * 3, [4.0] * 3, mode="max")
    assert ends(records) == [("completed", 3), ("stopped", 1)]
    records = run(
        tmp_path / "min", ASHA(reduction_factor=2), [5.0] * 3, [4.0] * 3, mode="min"
    )
    assert ends(records) == [("completed", 3), ("completed", 3)]


def test_a_trial_at_its_end_is_completed_not_stopped(tmp_path):
    """Its last report falls on a rung, where it is the worst."""
    records = run(tmp_path, ASHA(reduction_factor=2), [1.0, 1.0], [9.0])
    assert ends(records) == [("completed", 2), ("completed", 1)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scheduler", [ASHA(reduction_factor=2), MedianStopping()])
def test_diverged_trials_end_no_others(scheduler, tmp_path):
    bad, good = [math.nan], [1.0, 1.0]
    records = run(tmp_path, scheduler, bad, bad, good, bad, good, good)
    assert [record.status for record in records] == [
        *["diverged", "diverged", "completed"],
        *["diverged", "completed", "completed"],
    ]


def test_median_stopping_compares_the_best_with_the_running_means(tmp_path):
    """Means of two reports: 3, 5, 4, and of the first: 4, 6, 5.

    Trial 3 passes with 5 (the median), then its best, 4.5, is worse than 4. Trial 4 is
    worse than 5 at once. Trial 5 had a good moment: its best stays 1.
    """
    records = run(
        tmp_path,
        MedianStopping(grace_period=1, min_samples_required=3),
        [4.0, 2.0, 2.0],
        [6.0, 4.0, 4.0],
        [5.0, 3.0, 3.0],
        [5.0, 4.5, 0.0],
        [5.1, 0.0, 0.0],
        [1.0, 9.0, 9.0],
    )
    assert ends(records) == [
        *[("completed", 3), ("completed", 3), ("completed", 3)],
        *[("stopped", 2), ("stopped", 1), ("completed", 3)],
    ]


def test_median_stopping_waits_for_enough_trials(tmp_path):
    scheduler = MedianStopping(grace_period=2, min_samples_required=2)
    records = run(tmp_path, scheduler, [1.0] * 3, [9.0] * 3, [20.0] * 3)
    assert ends(records) == [("completed", 3), ("completed", 3), ("stopped", 2)]


# -- what is refused ---------------------------------------------------------------


def test_a_population_needs_a_cluster(tmp_path):
    with pytest.raises(UserError, match="PopulationBased needs several .* backend"):
        run(tmp_path, PopulationBased(), [1.0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ASHA(grace_period=0), "grace_period must be at least 1, got 0"),
        (lambda: ASHA(reduction_factor=1), "reduction_factor must be at least 2"),
        (lambda: ASHA(brackets=0), "brackets must be at least 1"),
        (lambda: MedianStopping(grace_period=0), "grace_period must be at least 1"),
        (
            lambda: MedianStopping(min_samples_required=0),
            "min_samples_required must be at least 1",
        ),
        (
            lambda: PopulationBased(perturbation_interval=0),
            "perturbation_interval must be at least 1",
        ),
        (
            lambda: PopulationBased(resample_probability=1.5),
            r"resample_probability must be in \[0, 1\], got 1.5",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("kind", [ASHA, MedianStopping, PopulationBased])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_every_scheduler_can_be_built(kind, mode):
    assert kind().build(SPACE, "loss", mode) is not None
