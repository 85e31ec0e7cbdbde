"""A resumed run equals the uninterrupted one to the bit, wherever it stopped."""

import signal
import time
from functools import partial
from itertools import groupby

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.cli import ReduceLROnPlateau
from torch.optim.lr_scheduler import ExponentialLR

from lightning_ecd.callbacks import Checkpoints, WholeFiles
from lightning_ecd.optimizers import REGISTRY
from tests.modules.toys import Regression, loader, maker, trainer, weights

NAMES = list(REGISTRY)
EPOCH = 15  # batches of 4 in 58 samples


class Crash(Exception):
    """The machine dies."""


class At(Callback):
    """Does something at the beginning of the batch that follows `batches` others."""

    def __init__(self, batches, action):
        self.batches, self.action = batches, action

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batches:
            self.action(trainer)


def crash(trainer):
    raise Crash


def stop(trainer):  # as EarlyStopping and Timer do
    trainer.should_stop = True


def make_task(name="BBI", **settings):
    arguments = {}
    if name == "BBI":  # bounces every third step
        arguments |= {"lr": 0.05, "bounce_every": 3, "fixed_bounces": 1000}
    return Regression(maker(name, **arguments), minibatches=1, dropout=0.3, **settings)


def fit(folder, task, *callbacks, seed=0, checkpoint=None, every=0, **settings):
    """Fit with checkpoints below `folder`; returns trainer and Checkpoints."""
    monitor = settings.pop("monitor", None)
    files = Checkpoints(str(folder / "files"), every, monitor, "min")
    runner = trainer(
        folder, callbacks=[*callbacks, files], plugins=WholeFiles(), **settings
    )
    torch.manual_seed(seed)
    runner.fit(task, loader(4), loader(29), ckpt_path=checkpoint)
    return runner, files


def uninterrupted(folder, name="BBI", settings=None, **trainer_settings):
    task = make_task(name, **(settings or {}))
    fit(folder / "whole", task, **trainer_settings)
    return task


def resumed(folder, file="last", name="BBI", settings=None, **trainer_settings):
    task = make_task(name, **(settings or {}))
    path = str(folder / "files" / f"{file}.ckpt")
    runner, _ = fit(folder, task, seed=99, checkpoint=path, **trainer_settings)
    return task, runner


def assert_same_run(whole, first, second, batches):
    """The second continues the first after `batches`, without gap or repetition."""
    assert torch.equal(weights(whole), weights(second))
    assert first.seen[:batches] == whole.seen[:batches]
    assert second.seen == whole.seen[batches:]
    assert len(whole.seen) == 2 * EPOCH


@pytest.mark.parametrize("name", NAMES)
def test_after_a_crash_in_the_middle_of_an_epoch(name, tmp_path):
    decay = {
        "scheduler": partial(ExponentialLR, gamma=0.95),
        "scheduler_interval": "step",
    }
    whole, first = uninterrupted(tmp_path, name, decay), make_task(name, **decay)
    with pytest.raises(Crash):
        fit(tmp_path, first, At(23, crash), every=5)
    second, _ = resumed(tmp_path, name=name, settings=decay)
    if REGISTRY[name].traits.evaluations != "1":
        for task in (whole, first, second):  # all evaluations of a step see its batch
            task.seen = [batch for batch, _ in groupby(task.seen)]
    assert_same_run(whole, first, second, 20)


def test_other_random_numbers_would_be_noticed(tmp_path):
    whole, other = uninterrupted(tmp_path), make_task()
    fit(tmp_path, other, seed=1)
    assert not torch.equal(weights(whole), weights(other))


def test_at_the_end_of_an_epoch(tmp_path):
    whole, first = uninterrupted(tmp_path), make_task()
    fit(tmp_path, first, max_epochs=1)
    second, runner = resumed(tmp_path)
    assert_same_run(whole, first, second, EPOCH)
    assert runner.current_epoch == 2


@pytest.mark.parametrize(
    ("interval", "batches"), [(5, 5), (1.0, EPOCH)], ids=["within", "after"]
)
def test_at_the_end_of_a_validation(interval, batches, tmp_path):
    """From best.ckpt of the first validation, within and after an epoch."""
    settings = {"val_check_interval": interval}
    whole, first = uninterrupted(tmp_path, **settings), make_task()
    with pytest.raises(Crash):
        fit(tmp_path, first, At(batches, crash), monitor="val/loss", **settings)
    second, _ = resumed(tmp_path, "best", **settings)
    assert_same_run(whole, first, second, batches)


@pytest.mark.parametrize("steps", [7, EPOCH, 22])
def test_at_the_end_of_a_run_that_max_steps_cut(steps, tmp_path):
    whole, first = uninterrupted(tmp_path), make_task()
    fit(tmp_path, first, max_steps=steps)
    second, _ = resumed(tmp_path)
    assert_same_run(whole, first, second, steps)


def test_after_a_callback_stopped_the_run(tmp_path):
    whole, first = uninterrupted(tmp_path), make_task()
    runner, _ = fit(tmp_path, first, At(6, stop))
    assert runner.global_step == 7
    second, _ = resumed(tmp_path)
    assert_same_run(whole, first, second, 7)


def test_at_the_end_of_a_run_that_max_time_cut(tmp_path):
    class Slow(Regression):
        def loss(self, batch):
            time.sleep(0.03)
            return super().loss(batch)

    whole, usual = uninterrupted(tmp_path), make_task()
    first = Slow(usual.make_optimizer, dropout=0.3)
    runner, _ = fit(tmp_path, first, max_time={"seconds": 0.3})
    assert 0 < runner.global_step < EPOCH
    second, _ = resumed(tmp_path, max_time={"hours": 1})
    assert_same_run(whole, first, second, runner.global_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("batches", [4, EPOCH - 1, 18])
def test_after_a_signal(number, batches, tmp_path):
    whole, first = uninterrupted(tmp_path), make_task()
    before = signal.getsignal(number)
    kick = At(batches, lambda trainer: signal.raise_signal(number))
    runner, files = fit(tmp_path, first, kick, min_epochs=2)
    assert files.interrupted == number
    assert runner.global_step == batches + 1  # the running step was finished
    assert signal.getsignal(number) == before
    second, _ = resumed(tmp_path)
    assert_same_run(whole, first, second, batches + 1)


def test_a_second_interrupt_ends_the_run_at_once(tmp_path):
    def twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    task, handler = make_task(), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit(tmp_path, task, At(4, twice))
    finally:  # Lightning ignores the signal from then on
        signal.signal(signal.SIGINT, handler)
    assert len(task.seen) == 4


@pytest.mark.parametrize("case", ["every", "signal", "max_steps", "stopped"])
def test_with_accumulation(case, tmp_path):
    """Groups of 4 batches, the last of an epoch of 3: steps end at 4, 8, 12, 15."""
    settings = {"accumulate_grad_batches": 4}
    whole, first = uninterrupted(tmp_path, **settings), make_task()
    if case == "every":
        with pytest.raises(Crash):
            fit(tmp_path, first, At(14, crash), every=3, **settings)
        batches = 12
    elif case == "signal":  # within a group: it is finished first
        kick = At(9, lambda trainer: signal.raise_signal(signal.SIGINT))
        fit(tmp_path, first, kick, **settings)
        batches = 12
    elif case == "stopped":
        fit(tmp_path, first, At(7, stop), **settings)
        batches = 8
    else:
        fit(tmp_path, first, max_steps=6, **settings)
        batches = EPOCH + 8
    second, runner = resumed(tmp_path, **settings)
    assert_same_run(whole, first, second, batches)
    assert runner.global_step == 8


def test_twice_in_one_epoch(tmp_path):
    whole, first = uninterrupted(tmp_path), make_task()
    fit(tmp_path, first, max_steps=4)
    second, _ = resumed(tmp_path, max_steps=9)
    third, _ = resumed(tmp_path)
    assert torch.equal(weights(whole), weights(third))
    assert first.seen + second.seen + third.seen == whole.seen


@pytest.mark.parametrize("case", ["max_epochs", "max_steps", "signal"])
@pytest.mark.parametrize("steps", [16, 20, 2 * EPOCH])
def test_from_the_end_of_an_epoch_to_a_number_of_steps(case, steps, tmp_path):
    interval = {"val_check_interval": 5}
    whole, first = uninterrupted(tmp_path, **interval), make_task()
    if case == "signal":
        kick = At(EPOCH - 1, lambda trainer: signal.raise_signal(signal.SIGTERM))
        fit(tmp_path, first, kick, **interval)
    else:
        fit(tmp_path, first, **{case: 1 if case == "max_epochs" else EPOCH}, **interval)
    second, _ = resumed(tmp_path, max_steps=steps, **interval)
    third, _ = resumed(tmp_path, **interval)
    assert torch.equal(weights(whole), weights(third))
    assert second.seen == whole.seen[EPOCH:steps]
    assert third.seen == whole.seen[steps:]


def test_a_plateau_is_remembered(tmp_path):
    halve = partial(
        ReduceLROnPlateau, monitor="val/loss", patience=0, threshold=9.0, factor=0.5
    )
    settings = {"scheduler": halve}
    whole, first = (
        uninterrupted(tmp_path, settings=settings, max_epochs=4),
        make_task(**settings),
    )
    fit(tmp_path, first, max_epochs=2)
    second, runner = resumed(tmp_path, settings=settings, max_epochs=4)
    assert runner.optimizers[0].param_groups[0]["lr"] < 0.05
    assert torch.equal(weights(whole), weights(second))


def test_evaluations_are_counted_on(tmp_path):
    fit(tmp_path, make_task(), max_steps=7)
    second, _ = resumed(tmp_path)
    assert second.evaluations == 2 * EPOCH


def test_a_checkpoint_without_random_states_warns(tmp_path):
    fit(tmp_path, make_task(), max_steps=7)
    path = tmp_path / "files" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["random_states"]
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="no random states"):
        resumed(tmp_path)


# -- which files there are ---------------------------------------------------------


def test_files_are_written_when_they_are_due(tmp_path):
    written = []

    class Watch(WholeFiles):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            written.append(checkpoint["global_step"])
            super().save_checkpoint(checkpoint, path, storage_options)

    files = Checkpoints(str(tmp_path / "files"), every_n_steps=4)
    runner = trainer(tmp_path, callbacks=files, plugins=Watch(), max_steps=22)
    runner.fit(make_task(), loader(4))
    assert written == [4, 8, 12, EPOCH, 16, 20, 22]
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["last.ckpt"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "best", "scores"),
    [
        ("min", 1, [5.0, 3.0, 9.0, 4.0]),
        ("max", 2, [5.0, 3.0, 9.0, 4.0]),
        ("min", 3, [NAN, 5.0, NAN, 4.0]),
        ("max", 1, [NAN, 5.0, NAN, 4.0]),
    ],
)
def test_best_is_the_best_number_by_its_mode(mode, best, scores, tmp_path):
    class Scored(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("score", scores[self.current_epoch], batch_size=1)

    files = Checkpoints(str(tmp_path), every_n_steps=0, monitor="score", mode=mode)
    runner = trainer(tmp_path, max_epochs=4, callbacks=files, plugins=WholeFiles())
    runner.fit(Scored(torch.optim.SGD), loader(29), loader(29))
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2 * (best + 1)


def test_a_monitor_that_nobody_logs_is_refused(tmp_path):
    from lightning_ecd.errors import UserError

    with pytest.raises(UserError, match=r"monitor=val/accuracy.*val/loss"):
        fit(tmp_path, make_task(), monitor="val/accuracy")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"every_n_steps": -1}, "every_n_steps"), ({"mode": "x"}, "mode")],
)
def test_bad_arguments_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Checkpoints(**settings)


def test_a_fast_dev_run_writes_nothing(tmp_path):
    fit(tmp_path, make_task(), fast_dev_run=True, every=1, monitor="val/loss")
    assert not (tmp_path / "files").exists()
