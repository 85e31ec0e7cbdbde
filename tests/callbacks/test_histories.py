"""Vectors that optimizers report, in files and pictures."""

from functools import partial

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_ecd.callbacks import Histories, LossesAlong
from lightning_ecd.callbacks.histories import read
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import BBI, RBD, ZeroOrderRBD
from tests.modules.toys import Regression, loader, trainer

rbd = partial(RBD, dimensions=3, diagnostics_every=2)


def fit(folder, optimizer, callback, epochs=2, **settings):
    logger = CSVLogger(str(folder), "a", "b")
    runner = trainer(
        folder, logger=logger, max_epochs=epochs, callbacks=callback, **settings
    )
    runner.fit(Regression(optimizer), loader(16))
    return folder / "a" / "b"


class Watches(Histories):
    """Keeps all that it was shown, too."""

    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        info = trainer.optimizers[0].info
        if "coordinates" in info:
            self.shown = [*getattr(self, "shown", []), info["coordinates"].clone()]


def test_every_report_is_kept_once_with_its_step(tmp_path):
    callback = Watches(["coordinates", "cosines"])
    folder = fit(tmp_path, rbd, callback) / "histories"
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["from_00000002.npz", "from_00000006.npz"]  # of four steps each
    found = read(folder)
    assert found["coordinates_steps"].tolist() == [2, 4, 6, 8]
    np.testing.assert_array_equal(found["coordinates"], torch.stack(callback.shown))
    assert found["cosines"].shape == (4, 4)  # of as many tensors


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_a_resumed_run_keeps_what_an_uninterrupted_one_does(tmp_path):
    at = tmp_path / "at"
    saves = ModelCheckpoint(at, "{step}", every_n_train_steps=3, save_top_k=-1)
    whole = read(fit(tmp_path / "1", rbd, [saves, Histories()]) / "histories")
    runner = trainer(tmp_path, max_epochs=2, callbacks=Histories())
    runner.fit(Regression(rbd), loader(16), ckpt_path=at / "step=3.ckpt")
    parts = read(tmp_path / "histories")  # with what was there before step 3
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)


@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_steps_that_are_made_anew_are_kept_once(tmp_path):
    at = tmp_path / "at"
    saves = ModelCheckpoint(at, "{step}", every_n_train_steps=3, save_top_k=-1)
    runner = trainer(tmp_path, max_epochs=3, callbacks=[saves, Histories()])
    runner.fit(Regression(rbd), loader(16))
    runner = trainer(tmp_path, max_epochs=3, callbacks=Histories())
    runner.fit(Regression(rbd), loader(16), ckpt_path=at / "step=3.ckpt")
    steps = read(tmp_path / "histories")["coordinates_steps"]
    assert steps.tolist() == [2, 4, 6, 8, 10, 12]


def test_what_is_never_reported_is_named(tmp_path):
    with pytest.warns(UserWarning, match="never reported energies"):
        fit(tmp_path, rbd, Histories(["coordinates", "energies"]), epochs=1)


def test_optimizers_without_reports_are_refused(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(UserError, match="SGD reports nothing"):
        fit(tmp_path, sgd, Histories())


@pytest.mark.parametrize("names", [[], "coordinates"])
def test_names_are_a_list(names):
    with pytest.raises(ValueError, match="^names must"):
        Histories(names)


@pytest.mark.parametrize("oracle", ["central", "forward"])
def test_landscapes_are_drawn_and_kept(tmp_path, oracle):
    zero = partial(ZeroOrderRBD, lr=0.1, dimensions=5, bins=7, oracle=oracle)
    both = [LossesAlong(every_n_steps=3), Histories(["landscape"])]
    folder = fit(tmp_path, zero, both, epochs=1)
    assert (folder / "landscape.png").stat().st_size > 5000
    tables = read(folder / "histories")["landscape"]
    assert tables.shape == (4, 7 if oracle == "central" else 2, 5)


def test_optimizers_without_a_landscape_are_refused(tmp_path):
    bbi = partial(BBI, lr=0.05, extra_energy=1.0)
    with pytest.raises(UserError, match="BBI has no such table"):
        fit(tmp_path, bbi, LossesAlong())


def test_pictures_need_a_positive_distance():
    with pytest.raises(ValueError, match="^every_n_steps must"):
        LossesAlong(0)
