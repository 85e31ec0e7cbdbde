"""Curves of repeated fits, loss and metric on twin axes."""

import numpy as np
import pytest

from lightning_ecd.figures import pixels
from tune.figures import twin_curves


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("epoch,step,acc,train,val\n" + text)
    return file


@pytest.fixture
def runs(tmp_path):
    first = write(tmp_path, "a.csv", "0,1,,9,\n0,2,0.5,,4\n1,4,0.6,,2\n2,6,0.7,,1\n")
    # two values in epoch 0: their mean is 2
    text = "0,1,,,1\n0,2,0.7,,3\n1,4,0.8,,1\n"
    second = write(tmp_path, "b/metrics.csv", text).parent
    third = write(tmp_path, "c.csv", "0,2,0.9,,0\n1,4,1.0,,nan\n")
    return {"A": [first, second, tmp_path / "gone.csv"], "B": [third]}


def test_twin_curves_have_means_and_bands_over_common_epochs(runs):
    figure = twin_curves(runs, "val", "acc")
    left, right = figure.axes
    assert left.get_ylabel() == "val (solid)"
    assert right.get_ylabel() == "acc (dashed)"
    np.testing.assert_array_equal(left.lines[0].get_xdata(), [0, 1])
    np.testing.assert_allclose(left.lines[0].get_ydata(), [3, 1.5])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.6, 0.7])
    assert right.lines[0].get_linestyle() == "--"
    # of (4, 2) and (2, 1): √2 and √½; of accuracies that differ by 0.2: 0.1 √2
    corners = left.collections[0].get_paths()[0].vertices
    for epoch, mean, std in ((0, 3, 2**0.5), (1, 1.5, 0.5**0.5)):
        band = corners[corners[:, 0] == epoch][:, 1]
        assert band.min() == pytest.approx(mean - std)
        assert band.max() == pytest.approx(mean + std)
    corners = right.collections[0].get_paths()[0].vertices
    assert corners[:, 1].max() == pytest.approx(0.7 + 0.1 * 2**0.5)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["A (runs: 2)", "B (runs: 1)"]


def test_twin_curves_leave_out_epochs_that_are_not_finite(runs):
    left, right = twin_curves(runs, "val", "acc").axes
    np.testing.assert_array_equal(left.lines[1].get_xdata(), [0])
    np.testing.assert_array_equal(right.lines[1].get_ydata(), [0.9, 1.0])


def test_a_metric_that_nobody_logged_is_named(runs):
    with pytest.raises(ValueError, match="loss: no run logs 'x'; there are acc, train"):
        twin_curves(runs, "x", "acc")
    with pytest.raises(ValueError, match="accuracy: no run logs 'y'"):
        twin_curves(runs, "val", "y")
    # only one run of one arm logs it
    left, _ = twin_curves(runs, "train", "acc").axes
    assert left.lines[0].get_ydata() == [9]
    assert len(left.lines[1].get_ydata()) == 0


def test_twin_curves_of_nothing_say_so(tmp_path):
    for nothing in ({}, {"A": []}, {"A": [tmp_path / "gone.csv"]}):
        figure = twin_curves(nothing, "val", "acc")
        notes = [text.get_text() for text in figure.axes[0].texts]
        assert notes == ["no run has left metrics"]
        pixels(figure, dpi=30)


def test_a_loss_over_many_decades_is_logarithmic(tmp_path):
    file = write(tmp_path, "a.csv", "0,0,0.001,,10\n1,1,0.9,,0.01\n")
    left, right = twin_curves({"A": [file]}, "val", "acc").axes
    assert left.get_yscale() == "log"
    assert right.get_yscale() == "linear"
