"""The confusion matrix, from the command line."""

from pathlib import Path


def test_a_fit_leaves_the_picture_of_its_test(fit):
    result = fit("--trainer.callbacks=lightning_ecd.callbacks.Confusion")
    assert (result.code, result.err) == (0, "")
    (picture,) = Path("logs").rglob("confusion.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
