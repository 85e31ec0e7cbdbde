"""Figures of ways on surfaces, of running ratios and of loss curves."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from lightning_ecd.figures import COLOURS, curves, pixels, running_ratio, surface
from lightning_ecd.functions import Ackley, Quadratic, Rosenbrock, TwoBasins, Zakharov


def line(axes, label):
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


def dashed(axes):
    return [line for line in axes.lines if line.get_linestyle() == "--"]


def marked(axes, marker):
    return [line for line in axes.lines if line.get_marker() == marker]


WAY = [[3.0, -2.0], [1.0, 1.0], [0.5, -0.25]]


@pytest.fixture(scope="module")
def bowl():
    """Two ways on a quadratic."""
    ways = {"a": WAY, "b": np.array(WAY) / 2}
    return surface(Quadratic(), ways, resolution=30)


def test_a_surface_has_contours_a_scale_and_three_dimensions(bowl):
    plane, space, bar = bowl.axes
    assert space.name == "3d"
    assert plane.get_xlabel() == space.get_xlabel() == "$x_1$"
    assert plane.get_ylabel() == space.get_ylabel() == "$x_2$"
    assert bar.get_ylabel() == "F"
    assert (plane.get_xlim(), plane.get_ylim()) == (space.get_xlim(), space.get_ylim())
    assert np.ptp(plane.get_xlim()) == pytest.approx(np.ptp(plane.get_ylim()))
    assert [text.get_text() for text in bowl.legends[0].get_texts()] == ["a", "b"]


def test_ways_are_drawn_at_their_points_in_both_panels(bowl):
    plane, space, _ = bowl.axes
    np.testing.assert_array_equal(line(plane, "a").get_xydata(), WAY)
    x, y, height = line(space, "a").get_data_3d()
    np.testing.assert_array_equal(np.stack([x, y], 1), WAY)
    # F = 24.5, 5.5, 0.4375: the heights keep their order and lie within the scale
    assert 0 <= height[2] < height[1] < height[0] <= 1
    colours = [to_hex(line(plane, name).get_color()) for name in "ab"]
    assert colours == list(COLOURS[:2])


def test_starts_ends_and_minimizers_are_marked(bowl):
    plane = bowl.axes[0]
    ends = [tuple(line.get_xydata()[0]) for line in marked(plane, "o")]
    assert ends == [(3.0, -2.0), (0.5, -0.25), (1.5, -1.0), (0.25, -0.125)]
    assert [tuple(m.get_xydata()[0]) for m in marked(plane, "+")] == [(0.0, 0.0)]
    assert not dashed(plane)


def test_labels_of_the_scale_are_true_heights(bowl):
    plane, space, bar = bowl.axes
    labels = [float(text.get_text()) for text in bar.get_yticklabels()]
    assert labels == sorted(labels)
    # the corner on the side of the start is the highest point
    corner = torch.tensor([plane.get_xlim()[1], plane.get_ylim()[0]])
    assert labels[-1] == pytest.approx(Quadratic()(corner).item(), rel=0.05)
    assert labels[0] == 0
    assert [text.get_text() for text in space.get_zticklabels()] == [
        text.get_text() for text in bar.get_yticklabels()
    ]


def test_basins_are_ringed():
    figure = surface(TwoBasins(), {"a": [[10.0, -10.0], [2.0, 2.0]]}, resolution=30)
    for axes in figure.axes[:2]:
        assert len(dashed(axes)) == 2
    rings = [ring.get_xydata() for ring in dashed(figure.axes[0])]
    for ring, centre, h in zip(rings, (-2.0, 2.0), (0.8640, 1.66397), strict=True):
        radius = np.hypot(*(ring - centre).T)
        np.testing.assert_allclose(radius, h**-0.5, rtol=1e-4)
    assert len(marked(figure.axes[0], "+")) == 2


def test_without_ways_the_box_is_drawn():
    figure = surface(Ackley(), {}, resolution=30)
    assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim() == (-4.0, 4.0)
    assert not figure.legends


def test_a_way_that_diverges_does_not_shrink_the_rest():
    way = [[-1.2, 1.0], [5.0, 1e9], [float("nan"), 0.0], [1.0, float("inf")]]
    figure = surface(Rosenbrock(), {"a": way, "lost": [[np.nan, 0.0]]}, resolution=30)
    plane, space, _ = figure.axes
    assert plane.get_ylim()[1] < 6  # the box is (-2, 2)
    assert len(line(plane, "a").get_xdata()) == 2
    x, y, _ = line(space, "a").get_data_3d()
    assert np.isnan(x[1]) or np.isnan(y[1])
    assert np.isfinite(pixels(figure, dpi=40)).all()


def test_many_ways_have_no_legend_and_repeat_colours():
    ways = {str(i): np.array(WAY) + 0.1 * i for i in range(len(COLOURS) + 1)}
    figure = surface(Zakharov(2), ways, resolution=30)
    plane = figure.axes[0]
    assert not figure.legends
    colours = [to_hex(line(plane, name).get_color()) for name in ways]
    assert colours == [*COLOURS, COLOURS[0]]


def test_the_ratio_runs_with_its_standard_error():
    ends = np.array([2, 1, 1, 2, 1, 1])
    figure = running_ratio(np.cumsum(ends == 1), np.cumsum(ends == 2), 1.9259, 1.7248)
    (axes,) = figure.axes
    measured = axes.lines[-1]
    np.testing.assert_array_equal(measured.get_xdata(), [2, 3, 4, 5, 6])
    np.testing.assert_allclose(measured.get_ydata(), [1, 2, 1, 1.5, 2])
    assert measured.get_label() == "measured: 2.0000 ± 1.7321"  # 2 √(1/4 + 1/2)
    assert line(axes, "mixing: 1.9259").get_ydata() == [1.9259, 1.9259]
    assert line(axes, "published: 1.7248").get_ydata() == [1.7248, 1.7248]
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices
    assert edges[:, 1].max() == pytest.approx(2 + 2 * (1 + 1 / 2) ** 0.5)
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        measured.get_label(),
        "mixing: 1.9259",
        "published: 1.7248",
    }


def test_the_published_counts_give_the_published_error():
    figure = running_ratio([1266], [734], 1.9259)
    assert figure.axes[0].lines[-1].get_label() == "measured: 1.7248 ± 0.0800"


def test_a_ratio_of_no_runs_shows_the_theory_alone():
    figure = running_ratio([1, 2], [0, 0], 1.9259)
    assert [line.get_label() for line in figure.axes[0].lines] == ["mixing: 1.9259"]


def test_curves_have_loss_and_best_so_far_on_a_logarithmic_scale():
    losses = {"BBI": ([0, 1, 2, 3], [4.0, 1.0, 2.0, 0.5]), "SGD": ([0, 5], [4.0, 3.0])}
    figure = curves(losses)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    np.testing.assert_array_equal(line(axes, "BBI").get_ydata(), [4, 1, 1, 0.5])
    loss, best, *_ = axes.lines
    np.testing.assert_array_equal(loss.get_ydata(), [4, 1, 2, 0.5])
    assert loss.get_linewidth() < best.get_linewidth()
    assert loss.get_color() == best.get_color() != line(axes, "SGD").get_color()
    assert len(axes.get_legend().get_texts()) == 2


def test_curves_of_distances_have_a_panel_of_their_own():
    figure = curves({"a": ([0, 1], [1.0, 0.0])}, {"a": ([0, 1], [3.0, 2.0])})
    left, right = figure.axes
    assert right.get_title() == "distance to the minimizer"
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [3.0, 2.0])
    assert np.isnan(left.lines[0].get_ydata()[1]), "zero has no logarithm"
    assert line(left, "a").get_ydata().tolist() == [1.0, 1.0]


def test_pixels_are_those_of_the_figure():
    image = pixels(curves({"a": ([0, 1], [1.0, 2.0])}), dpi=50)
    assert image.shape == (200, 250, 3)
    assert image.dtype == np.uint8
    assert image.min() < 100 < image.max() == 255
