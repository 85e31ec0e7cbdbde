"""Figures of searches: what is drawn where, at values worked out by hand."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lightning_ecd.figures import COLOURS, pixels
from lightning_ecd.ranges import Choice, Decay, Integers, LogUniform, Uniform
from tune.figures import history, parallel, sensitivity, slices
from tune.trial import Record

NAN = math.nan
LOST = ("diverged", "failed", "no value")
RANGES = {
    "lr": LogUniform(1e-4, 1.0),
    "betas[0]": Decay(0.1, 1.0),
    "betas[1]": Uniform(0.0, 1.0),
    "conserve_energy": Choice((True, False)),
    "bounces_interval": Integers(1, 9),
    "weight_decay": LogUniform(1e-6, 1e-2),
}


def record(number, value, status="completed", arm="A", **values):
    metrics = {} if value is None else {"loss": value}
    return Record(arm, number, values, status, metrics)


def full(number, value, status="completed", lr=0.01):
    """Return a trial with a value for each of RANGES."""
    flag = number % 2 == 0
    rest = {"bounces_interval": number % 9 + 1, "weight_decay": 1e-4}
    betas = [0.5, 0.1 * number]
    return record(
        number, value, status, lr=lr, betas=betas, conserve_energy=flag, **rest
    )


def dots(axes):
    """Return kind -> the points drawn, (n, 2)."""
    found = {}
    for drawn in axes.collections:
        found.setdefault(drawn.get_label(), []).append(np.asarray(drawn.get_offsets()))
    return {kind: np.concatenate(points) for kind, points in found.items()}


def line(axes, label):
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


MIXED = [
    record(0, 3.0),
    record(1, NAN, "diverged"),
    record(2, 1.0, "stopped"),
    record(3, 2.0),
    record(4, None, "failed"),
    record(5, 2.5, "running"),
    record(6, None),
    record(0, 5.0, "stopped", arm="B"),
    record(1, 4.0, "stopped", arm="B"),
]


def test_history_draws_every_trial_once_by_its_status():
    figure = history(MIXED, "loss", "min")
    found = dots(figure.axes[0])
    assert {kind: len(points) for kind, points in found.items()} == {
        **{"completed": 2, "diverged": 1, "stopped": 3, "failed": 1},
        **{"running": 1, "no value": 1},
    }
    np.testing.assert_array_equal(found["completed"], [[0, 3], [3, 2]])
    np.testing.assert_array_equal(found["stopped"], [[2, 1], [0, 5], [1, 4]])
    kinds = ["completed", "stopped", "running", *LOST]
    assert legend(figure) == ["A", "B", *kinds]
    assert figure.axes[0].get_ylabel() == "loss"


def test_completed_dots_are_filled_and_stopped_ones_hollow():
    drawn = history(MIXED, "loss", "min").axes[0].collections
    filled = {c.get_label(): len(c.get_facecolor()) > 0 for c in drawn}
    assert filled["completed"]
    assert not filled["stopped"] and not filled["running"]
    edges = {to_hex(c.get_edgecolor()[0]) for c in drawn if c.get_label() == "stopped"}
    assert edges == set(COLOURS[:2]), "one colour for each arm"


@pytest.mark.parametrize(("mode", "low", "high"), [("min", 0.94, 1), ("max", 0, 0.06)])
def test_trials_without_a_value_are_at_the_worse_edge(mode, low, high):
    axes = history(MIXED, "loss", mode).axes[0]
    axes.figure.draw_without_rendering()
    for drawn in axes.collections:
        to_share = drawn.get_offset_transform() - axes.transAxes
        share = to_share.transform(drawn.get_offsets())
        inside = (share[:, 1] > low) & (share[:, 1] < high)
        assert inside.all() if drawn.get_label() in LOST else not inside.any()
        assert ((share > 0) & (share < 1)).all(), "every mark can be seen"
    assert dots(axes)["diverged"][0, 0] == 1
    assert dots(axes)["failed"][0, 0] == 4


def test_the_best_so_far_of_each_arm():
    axes = history(MIXED, "loss", "min").axes[0]
    # the stopped trial 2, with 1.0, is not compared with the completed ones
    best = [3, 3, 3, 2, 2, 2, 2]
    np.testing.assert_array_equal(line(axes, "A").get_ydata(), best)
    np.testing.assert_array_equal(line(axes, "B").get_ydata(), [5, 4])
    assert line(axes, "A").get_drawstyle() == "steps-post"
    axes = history(MIXED, "loss", "max").axes[0]
    np.testing.assert_array_equal(line(axes, "A").get_ydata(), [3] * 7)
    np.testing.assert_array_equal(line(axes, "B").get_ydata(), [5, 5])


def test_the_best_so_far_follows_the_numbers_and_waits_for_a_value():
    trials = [record(2, 1.0), record(0, NAN, "diverged"), record(1, 4.0)]
    drawn = line(history(trials, "loss", "min").axes[0], "A")
    np.testing.assert_array_equal(drawn.get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(drawn.get_ydata(), [NAN, 4, 1])


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1e-3, 0.11], "log"),
        ([1e-3, 0.09], "linear"),
        ([0.0, 0.11], "linear"),
        ([-1.0, 500.0], "linear"),
    ],
)
def test_the_metric_is_logarithmic_if_positive_over_two_decades(values, scale):
    trials = [full(i, value) for i, value in enumerate([*values, NAN])]
    assert history(trials, "loss", "min").axes[0].get_yscale() == scale
    for figure in (
        slices(trials, RANGES, "loss", "min"),
        sensitivity(trials, {"A": RANGES}, "loss", "min"),
    ):
        assert figure.axes[0].get_yscale() == scale
    host, *standing, _ = parallel(trials, RANGES, "loss", "min").axes
    assert standing[-1].get_yscale() == scale


TRIALS = [
    full(0, 3.0, lr=1e-4),
    full(1, 1.0, lr=1e-2),
    full(2, 2.0, "stopped", lr=1e-3),
    full(3, NAN, "diverged", lr=1.0),
    full(4, None, "failed", lr=0.1),
]


def test_parallel_axes_have_scales_of_their_own():
    figure = parallel(TRIALS, RANGES, "loss", "min")
    host, *standing, _bar = figure.axes
    names = [text.get_text() for text in host.get_xticklabels()]
    assert names == [*RANGES, "loss"]
    scales = [axes.get_yscale() for axes in standing]
    assert scales == ["log", *["linear"] * 4, "log", "linear"]
    low, high = standing[1].get_ylim()
    assert low < math.exp(-1) < math.exp(-0.1) < high, "values, not rates"
    assert high - low < 1.1 * (math.exp(-0.1) - math.exp(-1))
    texts = [text.get_text() for text in standing[3].get_yticklabels()]
    assert texts == ["True", "False"]


def test_what_a_constraint_forbids_stands_at_the_worse_edge():
    figure = history([record(0, 1.0), record(1, NAN, "infeasible")], "loss", "min")
    np.testing.assert_allclose(dots(figure.axes[0])["infeasible"], [[1, 0.97]])


def test_parallel_lines_pass_through_the_values():
    figure = parallel(TRIALS, RANGES, "loss", "min")
    figure.draw_without_rendering()
    host, *standing, _bar = figure.axes
    drawn = [line for line in host.lines if not line.get_label().startswith("best")]
    assert len(drawn) == len(TRIALS)
    heights = np.array([line.get_ydata() for line in drawn])
    values = np.empty_like(heights)
    for i, axes in enumerate(standing):
        pixel = host.transData.transform(np.stack([heights[:, i], heights[:, i]], 1))
        values[:, i] = axes.transData.inverted().transform(pixel)[:, 1]
    # from the worst to the best; those without a value last
    np.testing.assert_allclose(values[:, 0], [1e-4, 1e-3, 1e-2, 1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(values[:, 1], 0.5)
    np.testing.assert_allclose(values[:, 2], [0, 0.2, 0.1, 0.3, 0.4], atol=1e-9)
    np.testing.assert_allclose(values[:, 3], [0, 0, 1, 1, 0], atol=1e-9)
    np.testing.assert_allclose(values[:, 4], [1, 3, 2, 4, 5])
    np.testing.assert_allclose(values[:3, -1], [3, 2, 1])
    assert (heights[3:, -1] > 0.95).all()
    assert {line.get_linestyle() for line in drawn[3:]} == {"--"}
    assert len({to_hex(line.get_color()) for line in drawn[:3]}) == 3
    best = line(host, "best: trial 1")
    np.testing.assert_array_equal(best.get_ydata(), heights[2])
    assert best.get_linewidth() > 1.5 * drawn[2].get_linewidth()
    kinds = {kind: len(points) for kind, points in dots(host).items()}
    assert kinds == {"completed": 2, "stopped": 1, "diverged": 1, "failed": 1}


def test_parallel_ranks_upwards_where_more_is_better():
    host, *_, bar = parallel(TRIALS, RANGES, "loss", "max").axes
    first = line(host, "best: trial 0").get_ydata()
    np.testing.assert_array_equal(host.lines[2].get_ydata(), first)  # of three
    assert host.lines[-2].get_ydata()[-1] < 0.05
    assert bar.get_ylabel() == "rank (1 = best)"
    low, high = bar.get_ylim()
    assert low > high, "the best above"


def test_slices_have_a_panel_for_each_coordinate():
    figure = slices(TRIALS, RANGES, "loss", "min")
    *panels, bar = figure.axes
    assert [axes.get_xlabel() for axes in panels] == [*RANGES]
    scales = [axes.get_xscale() for axes in panels]
    assert scales == ["log", *["linear"] * 4, "log"]
    assert bar.get_ylabel() == "trial"
    for axes in panels:
        assert sum(map(len, dots(axes).values())) == len(TRIALS)
    points = dots(panels[0])
    np.testing.assert_array_equal(points["completed"], [[1e-4, 3], [1e-2, 1]])
    assert points["diverged"][0, 0] == 1.0
    assert points["failed"][0, 0] == 0.1
    texts = [text.get_text() for text in panels[3].get_xticklabels()]
    assert texts == ["True", "False"]
    places = dots(panels[3])["completed"][:, 0]
    np.testing.assert_allclose(places, [0, 1], atol=0.2)
    colours = panels[0].collections[0].get_facecolor()
    assert len(np.unique(colours, axis=0)) == 2, "coloured by the number"


def test_categories_may_be_lists_and_new():
    ranges = {"betas": Choice(((0.9, 0.999), (0.5, 0.9)))}
    trials = [record(0, 1.0, betas=[0.5, 0.9]), record(1, 2.0, betas=[0.1, 0.2])]
    axes = slices(trials, ranges, "loss", "min").axes[0]
    texts = [text.get_text() for text in axes.get_xticklabels()]
    assert texts == ["[0.9, 0.999]", "[0.5, 0.9]", "[0.1, 0.2]"]
    np.testing.assert_allclose(dots(axes)["completed"][:, 0], [1, 2], atol=0.2)


#: Two trials in each of four decades of lr; with 8 trials there are 4 bins.
BASIN = [
    record(0, 8.0, lr=1.1e-4),
    record(1, 6.0, lr=9e-4),
    record(2, 1.0, "stopped", lr=2e-3),
    record(3, 4.0, lr=8e-3),
    record(4, 2.0, lr=2e-2),
    record(5, 3.0, lr=6e-2),
    record(6, 5.0, lr=0.2),
    record(7, NAN, "diverged", lr=0.9),
]
SPACE = {"lr": LogUniform(1e-4, 1.0)}


def test_bins_of_the_logarithm_have_a_best_and_a_median():
    figure = sensitivity(BASIN, {"A": SPACE}, "loss", "min")
    absolute, relative = figure.axes
    assert absolute.get_xscale() == relative.get_xscale() == "log"
    best, median = absolute.lines
    # in the second decade the completed trial leads, not the stopped one
    np.testing.assert_allclose(best.get_xdata(), [9e-4, 8e-3, 2e-2, 0.2])
    np.testing.assert_allclose(best.get_ydata(), [6, 4, 2, 5])
    assert median.get_linestyle() == "--"
    centres = [5.05e-4, 5e-3, 4e-2, 0.55]
    np.testing.assert_allclose(median.get_xdata(), centres)
    # the diverged trial is the worst: half of the last decade has no median
    np.testing.assert_allclose(median.get_ydata()[:3], [7, 2.5, 2.5])
    assert not np.isfinite(median.get_ydata()[3])
    assert legend(figure)[0] == "A\n(best lr 0.02)"
    assert relative.get_xlabel() == "lr / best lr"


def test_the_second_panel_is_relative_to_the_best():
    absolute, relative = sensitivity(BASIN, {"A": SPACE}, "loss", "min").axes
    _, best, median = relative.lines  # the first is the mark at 1
    np.testing.assert_allclose(best.get_xdata(), [0.045, 0.4, 1, 10])
    np.testing.assert_allclose(best.get_ydata(), [6, 4, 2, 5])
    np.testing.assert_allclose(median.get_xdata()[0], 5.05e-4 / 2e-2)
    assert dots(relative)["diverged"][0, 0] == pytest.approx(45)
    for axes in (absolute, relative):
        assert sum(map(len, dots(axes).values())) == 8
        low, high = axes.get_xlim()
        drawn = np.concatenate([*dots(axes).values()])[:, 0]
        assert low < drawn.min() < drawn.max() < high


def test_a_linear_axis_is_relative_by_the_difference():
    spaces = {"A": {"momentum": Decay(0.1, 1.0)}}
    trials = [record(0, 3.0, momentum=0.5), record(1, 1.0, momentum=0.75)]
    absolute, relative = sensitivity(trials, spaces, "loss", "min", "momentum").axes
    assert absolute.get_xscale() == relative.get_xscale() == "linear"
    assert relative.get_xlabel() == "momentum − best momentum"
    np.testing.assert_allclose(relative.lines[1].get_xdata(), [-0.25, 0])


def test_a_grid_has_a_bin_for_each_value_and_a_logarithmic_axis():
    spaces = {"A": {"lr": Choice((0.01, 0.1, 1.0))}}
    trials = [record(i, float(i), lr=10.0 ** (i % 3 - 2)) for i in range(9)]
    absolute, _ = sensitivity(trials, spaces, "loss", "max").axes
    assert absolute.get_xscale() == "log"
    best, median = absolute.lines
    np.testing.assert_allclose(best.get_xdata(), [0.01, 0.1, 1])
    np.testing.assert_allclose(best.get_ydata(), [6, 7, 8])
    np.testing.assert_allclose(median.get_ydata(), [3, 4, 5])


def test_arms_without_the_key_are_left_out_and_keep_their_colours():
    trials = [record(0, 1.0, arm="B", eta=1.0), *BASIN]
    spaces = {"A": SPACE, "B": {"eta": Uniform(0, 2)}}
    figure = sensitivity(trials, spaces, "loss", "min")
    assert legend(figure)[:2] == ["A\n(best lr 0.02)", "best of a bin"]
    assert figure.axes[0].lines[0].get_color() == COLOURS[1]
    assert history(trials, "loss", "min").axes[0].lines[1].get_color() == COLOURS[1]
    figure = sensitivity(trials[:1], spaces, "loss", "min")  # A has not begun
    assert not any(dots(axes) for axes in figure.axes)


def test_a_key_that_no_arm_has_is_named_and_one_of_words_too():
    with pytest.raises(ValueError, match="key: no arm has 'nu'; there are lr"):
        sensitivity(BASIN, {"A": SPACE}, "loss", "min", key="nu")
    trials = [record(0, 1.0, act="relu")]
    spaces = {"A": {"act": Choice(("relu", "tanh"))}}
    with pytest.raises(ValueError, match="key: act must have numbers"):
        sensitivity(trials, spaces, "loss", "min", key="act")


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [full(0, 1.0)],
        [full(0, NAN, "diverged")],
        [full(0, NAN, "diverged"), full(1, None, "failed"), full(2, None)],
        [full(0, 1.0, lr=None), full(1, 2.0)],
    ],
    ids=["none", "one", "diverged", "lost", "missing"],
)
def test_every_figure_can_be_drawn(trials):
    mode = "max" if len(trials) == 3 else "min"
    ranges = {name: RANGES[name] for name in ("lr", "conserve_energy")}
    for figure in (
        history(trials, "loss", mode),
        parallel(trials, ranges, "loss", mode),
        slices(trials, ranges, "loss", mode),
        sensitivity(trials, {"A": ranges}, "loss", mode),
    ):
        assert np.isfinite(pixels(figure, dpi=30)).all()
        notes = {text.get_text() for axes in figure.axes for text in axes.texts}
        empty = not any(trial.metrics.get("loss", NAN) > 0 for trial in trials)
        assert notes == ({"no trial has a finite loss"} if empty else set())
        drawn = [c for axes in figure.axes for c in axes.collections]
        kinds = {c.get_label() for c in drawn}
        assert {trial.status for trial in trials} - kinds <= {"completed"}


def test_labels_of_six_coordinates_do_not_overlap():
    trials = [full(i, 1.0 + i) for i in range(8)]
    for figure in (
        parallel(trials, RANGES, "loss", "min"),
        slices(trials, RANGES, "loss", "min"),
    ):
        figure.draw_without_rendering()
        labels = [axes.xaxis.label for axes in figure.axes]
        labels += figure.axes[0].get_xticklabels()
        boxes = [text.get_window_extent() for text in labels if text.get_text()]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
