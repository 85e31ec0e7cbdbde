"""Windows of runs: what a batch holds is a function of (seed, epoch, batch)."""

import numpy as np
import pytest
import torch

from datamodules import MNIST, ImageStreams, Quadratics
from tests.datamodules.test_image_data import real


def batches(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def same(a, b):
    return (
        all(torch.equal(x, y) for x, y in zip(a.batch, b.batch, strict=True))
        and np.array_equal(a.step, b.step)
        and np.array_equal(a.seed, b.seed)
        and np.array_equal(a.last, b.last)
    )


def test_a_run_is_cut_into_windows_and_ends_with_a_short_one():
    data = Quadratics(runs=3, steps=10, window=4, runs_per_epoch=2)
    parts = batches(data.train_dataloader())
    assert [list(part.step[:, 0]) for part in parts] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9],
    ]  # fmt: skip
    assert [part.last.sum() for part in parts] == [0, 0, 3, 0, 0, 3]
    W, y = parts[2].batch
    assert W.shape == (3, 3, 10, 10) and y.shape == (3, 3, 10)
    assert len({int(s) for part in parts for s in part.seed.ravel()}) == 6


def test_dropped_ends_leave_whole_windows():
    data = Quadratics(steps=100, window=15, runs_per_epoch=3, last="drop")
    parts = batches(data.train_dataloader())
    assert len(parts) == 18 and all(len(part.step) == 15 for part in parts)
    assert parts[5].step[-1, 0] == 89 and parts[6].step[0, 0] == 0


def test_a_problem_stays_the_same_over_its_run_and_differs_between_runs():
    data = Quadratics(runs=2, steps=6, window=3, runs_per_epoch=2)
    first, second, third, _ = batches(data.train_dataloader())
    assert torch.equal(first.batch[0][0], second.batch[0][-1])
    assert not torch.equal(first.batch[0][0], third.batch[0][0])
    assert not torch.equal(first.batch[0][0, 0], first.batch[0][0, 1])


def test_quadratics_are_standard_normal_w_before_y():
    data = Quadratics(runs=2000, window=1)
    W, y = batches(data.train_dataloader())[0].batch
    for tensor in (W[0], y[0]):
        assert abs(tensor.mean()) < 0.02 and abs(tensor.std() - 1) < 0.02
    assert y[0].square().sum(1).mean() == pytest.approx(10, rel=0.03)  # E f(0)


@pytest.mark.parametrize("stagger", [False, True])
def test_order_is_a_function_of_seed_and_epoch(stagger):
    settings = {"runs": 3, "steps": 10, "window": 4, "stagger": stagger}

    def all_of(epoch, **more):
        data = Quadratics(**{**settings, **more})
        return batches(data.train_dataloader(), epoch)

    for a, b in zip(all_of(2), all_of(2), strict=True):
        assert same(a, b)
    assert not same(all_of(2)[0], all_of(3)[0])
    assert not same(all_of(2)[0], all_of(2, seed=1)[0])


def test_a_restored_position_goes_on_with_the_next_window():
    data = Quadratics(runs=2, steps=10, window=4, runs_per_epoch=2)
    whole = batches(data.train_dataloader(), 1)
    loader = data.train_dataloader()
    loader.set_epoch(1)
    stream = iter(loader)
    for _ in range(2):
        next(stream)
    resumed = data.train_dataloader()
    resumed.set_epoch(1)
    resumed.load_state_dict(loader.state_dict())
    for a, b in zip(resumed, whole[2:], strict=True):
        assert same(a, b)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_ranks_share_the_runs_of_one_process(part, monkeypatch):
    """The union of two ranks' runs is what one process sees."""
    data = Quadratics(runs=5, steps=6, window=3, val_runs=5, test_runs=5, eval_runs=3)
    loader = getattr(data, f"{part}_dataloader")
    one = batches(loader())
    ranks = []
    for rank in range(2):
        mine = loader()
        mine.share = (rank, 2)
        ranks.append(batches(mine))
    for whole, *parts in zip(one, *ranks, strict=True):
        union = np.concatenate([p.seed[0] for p in parts])
        assert sorted(union) == sorted(whole.seed[0])
        for place, seed in enumerate(parts[1].seed[0]):
            where = list(whole.seed[0]).index(seed)
            assert torch.equal(parts[1].batch[0][:, place], whole.batch[0][:, where])


def test_validation_has_the_same_runs_each_time_unless_fresh():
    for fresh in (False, True):
        data = Quadratics(val_runs=4, window=100, fresh_validation=fresh)
        (a,), (b,) = (batches(data.val_dataloader(), epoch) for epoch in (0, 1))
        assert same(a, b) != fresh
        (train,), (test,) = (
            batches(loader())[:1] for loader in (data.train_dataloader,) * 2
        )
        assert not set(a.seed.ravel()) & set(train.seed.ravel())
        assert same(train, test)


def test_runs_of_training_validation_and_test_differ():
    data = Quadratics(runs=50, val_runs=50, test_runs=50, window=100)
    seen = [
        set(batches(loader)[0].seed.ravel())
        for loader in (
            data.train_dataloader(),
            data.val_dataloader(),
            data.test_dataloader(),
        )
    ]
    assert [len(s) for s in seen] == [50, 50, 50]
    assert len(set.union(*seen)) == 150


def test_evaluations_come_in_groups_whole_runs_each():
    data = Quadratics(steps=10, window=4, test_runs=7, eval_runs=3, eval_steps=6)
    parts = batches(data.test_dataloader())
    assert [part.step.shape for part in parts] == [(4, 2), (2, 2), *[(4, 2), (2, 2)],
                                                   (4, 3), (2, 3)]  # fmt: skip
    assert parts[-1].last[-1].all()


@pytest.mark.parametrize("longest", [None, 40])
def test_staggered_runs_begin_at_all_times_and_follow_one_another(longest):
    data = Quadratics(runs=30, steps=10, window=4, stagger=True, longest=longest,
                      runs_per_epoch=40)  # fmt: skip
    parts = [p for epoch in range(2) for p in batches(data.train_dataloader(), epoch)]
    step = np.concatenate([part.step for part in parts])
    seed = np.concatenate([part.seed for part in parts])
    last = np.concatenate([part.last for part in parts])
    ends = last[:-1]
    assert (step[0] == 0).all()
    assert (step[1:][ends] == 0).all() and (seed[1:][ends] != seed[:-1][ends]).all()
    assert (step[1:][~ends] == step[:-1][~ends] + 1).all()
    assert (seed[1:][~ends] == seed[:-1][~ends]).all()
    later = [
        step[t, lane] + 1
        for lane in range(30)
        for t in np.flatnonzero(last[:, lane])[1:]
    ]
    assert later
    if longest is None:
        assert set(later) == {10}
        phases = {int(np.flatnonzero(last[:, lane])[0]) for lane in range(30)}
        assert len(phases) > 5
    else:
        assert min(later) >= 10 and max(later) <= 40
        assert np.log(later).mean() == pytest.approx(np.log(20), abs=0.1)


def test_digits_come_in_mini_batches_of_one_half_without_replacement():
    data = ImageStreams("Digits", batch_size=100, runs=2, steps=9, window=9,
                        val_runs=1)  # fmt: skip
    data.setup()
    (part,) = batches(data.train_dataloader())[:1]
    images, labels = part.batch
    assert images.shape == (10, 2, 100, 1, 8, 8) and labels.shape == (10, 2, 100)
    assert images.dtype == torch.float32 and 0 <= images.min() <= images.max() == 1
    a_pass = images[:7, 0].reshape(700, -1)  # 750 samples, 7 batches
    assert len(torch.unique(a_pass, dim=0)) >= 695  # a few digits are drawn twice
    held = batches(data.val_dataloader())[0].batch[0][:7, 0].reshape(700, -1)
    both = torch.cat([torch.unique(a_pass, dim=0), torch.unique(held, dim=0)])
    assert len(torch.unique(both, dim=0)) >= len(both) - 5


def test_the_halves_of_mnist_are_those_of_the_released_code():
    images, labels = real(MNIST).whole("train")
    order = list(range(60000))
    np.random.RandomState(10).shuffle(order)
    data = ImageStreams(window=1, runs=1)
    data.setup()
    for training, chosen in ((True, order[:30000]), (False, order[30000:])):
        found = data._halves[training]
        assert torch.equal(found[0], images[chosen])
        assert torch.equal(found[1], labels[chosen])
    assert data.per_pass == 234


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"runs": 0}, "runs"),
        ({"steps": 0}, "steps"),
        ({"window": 0}, "window"),
        ({"runs_per_epoch": 0}, "runs_per_epoch"),
        ({"val_runs": 0}, "val_runs"),
        ({"test_runs": 0}, "test_runs"),
        ({"eval_runs": 0}, "eval_runs"),
        ({"eval_steps": 0}, "eval_steps"),
        ({"last": "long"}, "last"),
        ({"last": "drop", "steps": 5, "window": 6}, "window"),
        ({"longest": 200}, "longest"),
        ({"longest": 20, "stagger": True}, "longest"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_bad_arguments_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        Quadratics(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"dataset": "Letters"}, "dataset"),
        ({"batch_size": 800}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_of_images_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        ImageStreams(**{"dataset": "Digits", **settings})
