"""Tasks built in Python, with callables as arguments: their checkpoints work."""

from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from datamodules import Loader
from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.optimizers import BBI
from modules import Classifier, LeNet
from tests.modules.toys import Regression, loader, trainer, weights

ARGUMENTS = {
    "optimizer": partial(BBI, lr=0.05),
    "scheduler": partial(ExponentialLR, gamma=0.9),
}


def make_task(**settings):
    return Regression(**ARGUMENTS, dropout=0.25, **settings)


def fit(folder, task, stock=False, ckpt_path=None, **settings):
    """Fit with Lightning's own checkpoint files, or ours."""
    files = Checkpoints(str(folder), every_n_steps=1)
    ours = {} if stock else {"callbacks": files, "plugins": WholeFiles()}
    runner = trainer(folder, **ours, **{"max_steps": 20, **settings})
    runner.fit(task, loader(4), ckpt_path=ckpt_path)
    return runner


def test_hyperparameters_hold_no_callables():
    hparams = dict(make_task(groups={"*.bias": {"lr": 0.1}}).hparams)
    assert hparams == {
        "dropout": 0.25,
        "minibatches": None,
        "scheduler_interval": "epoch",
        "groups": {"*.bias": {"lr": 0.1}},
    }
    task = Classifier(partial(LeNet, size=8), torch.optim.SGD)
    assert not any(callable(value) for value in task.hparams.values())
    assert not any(callable(value) for value in task.hparams_initial.values())


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "lightnings"])
def test_a_checkpoint_is_plain_data_and_resumes(stock, tmp_path):
    task = make_task()
    runner = fit(tmp_path, task, stock, max_epochs=1)
    path = tmp_path / "a.ckpt"
    runner.save_checkpoint(path)
    assert "optimizer" not in torch.load(path, weights_only=True)["hyper_parameters"]

    again = make_task()
    other = fit(tmp_path, again, stock, ckpt_path=str(path), max_steps=-1)
    assert other.global_step == again.evaluations == 30
    assert not torch.equal(weights(again), weights(task))


def test_a_checkpoint_loads_when_the_callables_are_passed_again(tmp_path):
    task = make_task()
    runner = fit(tmp_path, task, stock=True)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Regression.load_from_checkpoint(tmp_path / "a.ckpt", **ARGUMENTS)
    assert torch.equal(weights(loaded), weights(task))
    assert loaded.hparams["dropout"] == 0.25
    assert loaded.network[2].p == 0.25
    assert loaded.evaluations == 20


def test_without_the_callables_the_missing_one_is_named(tmp_path):
    runner = fit(tmp_path, make_task(), stock=True)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match="optimizer"):
        Regression.load_from_checkpoint(tmp_path / "a.ckpt")


def test_a_classifier_loads_with_its_network(tmp_path):
    network = partial(LeNet, size=8, outputs=10)
    task = Classifier(network, partial(BBI, lr=0.1))
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    runner = trainer(tmp_path, max_steps=3)
    runner.fit(task, Loader((images, labels), batch_size=4))
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Classifier.load_from_checkpoint(
        tmp_path / "a.ckpt", network=network, optimizer=partial(BBI, lr=0.1)
    )
    task.eval()
    loaded.eval()
    assert torch.equal(loaded(images), task(images))
