import csv
import os
import signal
from functools import partial

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim import SGD

from datamodules import Digits
from lightning_ecd.callbacks import (
    Checkpoints,
    LastAverage,
    TensorBoard,
    WeightAverage,
    WholeFiles,
)
from lightning_ecd.callbacks.averaging import suffix_means
from lightning_ecd.errors import UserError
from lightning_ecd.figures import average_curve
from lightning_ecd.optimizers import BBI
from modules import Classifier
from tests.modules.toys import trainer

bbi = partial(BBI, lr=0.1, extra_energy=1.0, bounce_every=7, fixed_bounces=2)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 10)
        )


def task(optimizer=bbi):
    return Classifier(network, optimizer)


def data(**settings):
    return Digits(**({"batch_size": 100, "eval_batch_size": 100} | settings))


class Recorder(Callback):
    """Remembers state and learning rate at the end of every epoch."""

    def __init__(self):
        self.states, self.rates = [], []

    def on_train_epoch_end(self, trainer, pl_module):
        state = pl_module.state_dict()
        self.states.append({name: value.clone() for name, value in state.items()})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(folder, *callbacks, optimizer=bbi, ckpt_path=None, **settings):
    """Return the task, the record and the trainer of a short run."""
    module, record = task(optimizer), Recorder()
    options = {"max_epochs": 4, "callbacks": [record, *callbacks]} | settings
    fitting = trainer(folder, **options)
    fitting.fit(module, datamodule=data(), ckpt_path=ckpt_path)
    return module, record, fitting


def mean(states, name):
    return sum(state[name].double() for state in states) / len(states)


def learned(module):
    return dict(module.named_parameters())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", [bbi, partial(SGD, lr=0.1, momentum=0.9)])
def test_the_module_ends_with_the_mean_of_the_ends_of_epochs(tmp_path, optimizer):
    swa = WeightAverage(start_epoch=2)
    module, record, _ = fit(tmp_path, swa, optimizer=optimizer)
    for name, value in learned(module).items():
        expected = mean(record.states[1:], name).float()
        torch.testing.assert_close(value.data, expected, rtol=1e-5, atol=1e-6)


def test_averaging_leaves_run_and_learning_rate_alone(tmp_path):
    swa = WeightAverage(start_epoch=2)
    _, averaged, _ = fit(tmp_path / "averaged", swa)
    module, plain, _ = fit(tmp_path / "plain")
    assert averaged.rates == [0.1] * 4
    for one, other in zip(averaged.states, plain.states, strict=True):
        assert same(one, other)
    assert same(module.state_dict(), plain.states[-1])


def test_statistics_are_those_of_the_mean_over_the_training_batches(tmp_path):
    module, *_ = fit(tmp_path, WeightAverage(start_epoch=2))
    layers = module.network
    loader = data().train_dataloader()
    loader.set_epoch(3)  # the batches of the last epoch
    means, variances = [], []
    with torch.no_grad():
        for images, _ in loader:
            inputs = layers[1](layers[0](images)).double()
            means.append(inputs.mean(0))
            variances.append(inputs.var(0))
    norm = layers[2]
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(norm.running_mean, torch.stack(means).mean(0).float())
    close(norm.running_var, torch.stack(variances).mean(0).float())
    assert norm.momentum == 0.1


def test_statistics_are_averaged_if_they_are_not_estimated_anew(tmp_path):
    swa = WeightAverage(start_epoch=3, update_batchnorm=False)
    module, record, _ = fit(tmp_path, swa)
    for name in ("network.2.running_mean", "network.2.running_var"):
        expected = mean(record.states[2:], name).float()
        torch.testing.assert_close(module.state_dict()[name], expected)


def test_validation_sees_the_mean_as_soon_as_there_is_one(tmp_path):
    class Validated(Callback):
        states = []

        def on_validation_batch_start(self, trainer, pl_module, *args):
            self.states.append(pl_module.network[1].weight.detach().clone())

    swa, seen = WeightAverage(start_epoch=2), Validated()
    _, record, _ = fit(tmp_path, swa, seen, limit_val_batches=1)
    name = "network.1.weight"
    own = [state[name] for state in record.states]
    # The validation of an epoch comes before the end of that epoch.
    assert torch.equal(seen.states[0], own[0]) and torch.equal(seen.states[1], own[1])
    assert torch.equal(seen.states[2], own[1])
    expected = mean(record.states[1:3], name).float()
    torch.testing.assert_close(seen.states[3], expected)


def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path):
    def parts(folder):
        swa = WeightAverage(start_epoch=2)
        return swa, Checkpoints(str(folder), every_n_steps=5)

    whole, record, _ = fit(tmp_path / "whole", *parts(tmp_path / "whole"))
    folder = tmp_path / "parts"
    fit(folder, *parts(folder), max_epochs=-1, max_steps=2 * 13 + 5)
    file = str(folder / "last.ckpt")
    stored = WholeFiles().load_checkpoint(file)
    assert same(stored["state_dict"], record.states[1])  # the mean of one epoch
    module, *_ = fit(folder, *parts(folder), ckpt_path=file)
    assert same(whole.state_dict(), module.state_dict())


def test_an_epoch_that_was_cut_is_not_averaged(tmp_path):
    options = {"max_epochs": -1, "max_steps": 2 * 13 + 5}
    module, record, _ = fit(tmp_path, WeightAverage(start_epoch=2), **options)
    for name, value in learned(module).items():
        assert torch.equal(value, record.states[1][name])


def test_before_the_first_average_checkpoints_hold_the_weights_themselves(tmp_path):
    checkpoints = Checkpoints(str(tmp_path), every_n_steps=0)
    swa = WeightAverage(start_epoch=4)
    fit(tmp_path, swa, checkpoints, max_epochs=-1, max_steps=20)
    module, *_ = fit(tmp_path / "plain", max_epochs=-1, max_steps=20)
    stored = WholeFiles().load_checkpoint(tmp_path / "last.ckpt")
    assert same(stored["state_dict"], module.state_dict())


def test_the_average_is_written(tmp_path):
    module, *_ = fit(tmp_path, WeightAverage(start_epoch=3))
    file = tmp_path / "checkpoints" / "average.ckpt"
    assert same(WholeFiles().load_checkpoint(file)["state_dict"], module.state_dict())
    network = task()
    testing = trainer(tmp_path, callbacks=[WeightAverage(start_epoch=3)])
    testing.test(network, datamodule=data(), ckpt_path=str(file), verbose=False)
    assert same(network.state_dict(), module.state_dict())


def test_a_run_too_short_for_an_average_is_refused(tmp_path):
    with pytest.raises(UserError, match="start_epoch is 161.*after 4 epochs"):
        fit(tmp_path, WeightAverage())
    fit(tmp_path, WeightAverage(), fast_dev_run=True)


def test_exponential_averages_work_with_bbi(tmp_path):
    class Steps(Callback):
        mean = None

        def on_train_batch_end(self, trainer, pl_module, *args):
            now = pl_module.network[1].weight.detach().clone()
            self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now

    slow = Steps()
    module, *_ = fit(tmp_path, EMAWeightAveraging(decay=0.9), slow, max_epochs=1)
    torch.testing.assert_close(module.network[1].weight.data, slow.mean)


def test_suffix_means_are_plain_means_of_the_last_states(tmp_path):
    torch.manual_seed(0)
    states = [
        {"w": torch.randn(3, 2), "count": torch.tensor(i), "v": torch.randn(4).double()}
        for i in range(4)
    ]
    files = [tmp_path / f"{i}.ckpt" for i in range(4)]
    for file, state in zip(files, states, strict=True):
        torch.save({"state_dict": state}, file)
    found = list(suffix_means(files[::-1]))
    assert len(found) == 4
    for k, state in enumerate(found, 1):
        assert state["count"] == 3 and state["w"].dtype == torch.float32
        for name in ("w", "v"):
            expected = mean(states[-k:], name).to(state[name].dtype)
            torch.testing.assert_close(state[name], expected)


def accuracy(state):
    module = task().eval()
    module.load_state_dict(state)
    images, labels = data().read("test")
    with torch.no_grad():
        return (module(images / 16).argmax(1) == labels).double().mean().item()


def curve(folder, part="test"):
    with open(folder / "average.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["k", f"{part}/accuracy"]
    assert [int(k) for k, _ in rows] == list(range(1, len(rows) + 1))
    return [float(value) for _, value in rows]


def test_the_curve_is_that_of_the_last_epochs(tmp_path):
    module, record, _ = fit(tmp_path, LastAverage(epochs=3), max_epochs=5)
    expected = []
    for k in (1, 2, 3):
        last = record.states[-k:]
        state = {name: mean(last, name).to(v.dtype) for name, v in last[0].items()}
        expected.append(accuracy(state))
    assert curve(tmp_path) == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert same(module.state_dict(), record.states[-1])
    names = sorted(file.name for file in (tmp_path / "epochs").iterdir())
    assert names == ["000003.ckpt", "000004.ckpt", "000005.ckpt"]
    assert (tmp_path / "average.png").stat().st_size > 5000


def test_the_module_can_end_up_with_a_mean(tmp_path):
    module, record, _ = fit(tmp_path, LastAverage(epochs=4, final=2))
    for name, value in learned(module).items():
        expected = mean(record.states[-2:], name).float()
        torch.testing.assert_close(value.data, expected)
    file = tmp_path / "checkpoints" / "average.ckpt"
    assert same(WholeFiles().load_checkpoint(file)["state_dict"], module.state_dict())


def test_the_curve_of_the_validation_set_can_be_drawn(tmp_path):
    module, _, fitting = fit(tmp_path, LastAverage(epochs=2, part="val"))
    [result] = fitting.validate(module, datamodule=data(), verbose=False)
    assert curve(tmp_path, "val")[0] == pytest.approx(result["val/accuracy"])


def test_the_curve_is_in_tensorboard(tmp_path):
    logger = TensorBoard(str(tmp_path), "run", "0")
    fit(tmp_path, LastAverage(epochs=2), logger=logger, log_every_n_steps=5)
    logger.experiment.flush()
    folder = tmp_path / "run" / "0"
    events = EventAccumulator(str(folder)).Reload()
    scalars = events.Scalars("average/test_accuracy")
    assert [scalar.step for scalar in scalars] == [1, 2]
    assert [s.value for s in scalars] == pytest.approx(curve(folder))
    assert "average/curve" in events.Tags()["images"]


def test_an_epoch_that_was_cut_does_not_count(tmp_path):
    fit(tmp_path, LastAverage(epochs=9), max_epochs=-1, max_steps=2 * 13 + 5)
    assert len(curve(tmp_path)) == 2


def test_epochs_that_are_trained_again_replace_the_former_ones(tmp_path):
    def parts():
        return LastAverage(epochs=9), Checkpoints(str(tmp_path), every_n_steps=0)

    fit(tmp_path, *parts(), max_epochs=1)
    early = tmp_path / "early.ckpt"
    (tmp_path / "last.ckpt").rename(early)
    fit(tmp_path, *parts(), max_epochs=3)
    assert len(curve(tmp_path)) == 3
    _, record, _ = fit(tmp_path, *parts(), ckpt_path=str(early), max_epochs=2)
    assert len(curve(tmp_path)) == 2
    assert curve(tmp_path)[0] == pytest.approx(accuracy(record.states[-1]))


def test_the_first_process_writes_without_asking_others(tmp_path, monkeypatch):
    class Alone(LastAverage):
        def _write(self, trainer, accuracies):
            with monkeypatch.context() as patch:
                patch.delattr("pytorch_lightning.Trainer.log_dir")  # it asks them all
                super()._write(trainer, accuracies)

    fit(tmp_path, Alone(epochs=2), max_epochs=2)
    assert len(curve(tmp_path)) == 2


def test_an_interrupted_run_draws_nothing_yet(tmp_path):
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 20:
                os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "checkpoints"
    parts = [LastAverage(epochs=2), WeightAverage(1), Interrupt()]
    _, record, _ = fit(tmp_path, *parts, Checkpoints(str(folder)))
    assert not (tmp_path / "average.csv").exists()
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]


def test_a_trial_run_writes_nothing(tmp_path):
    parts = [LastAverage(), WeightAverage(1)]
    fit(tmp_path / "run", *parts, fast_dev_run=True)
    assert not (tmp_path / "run").exists()


def test_a_curve_needs_its_data(tmp_path):
    fitting = trainer(tmp_path, callbacks=[LastAverage()])
    with pytest.raises(UserError, match="needs a data module"):
        fitting.fit(task(), data().train_dataloader())
    fitting = trainer(tmp_path, callbacks=[LastAverage(part="val")])
    with pytest.raises(UserError, match="data.val_size is 0"):
        fitting.fit(task(), datamodule=data(val_size=0))


def test_the_figure_names_the_best_average():
    figure = average_curve([0.5, 0.75, 0.7], "test")
    title = figure.axes[0].get_title()
    assert title == "last weights: 50.00 %, best (k = 2): 75.00 %"
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50, 75, 70]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: WeightAverage(start_epoch=0), "start_epoch"),
        (lambda: LastAverage(epochs=0), "epochs"),
        (lambda: LastAverage(epochs=3, final=4), "final"),
        (lambda: LastAverage(final=0), "final"),
        (lambda: LastAverage(part="train"), "part"),
    ],
)
def test_bad_arguments_are_refused_by_name(build, name):
    with pytest.raises(ValueError, match=name):
        build()
