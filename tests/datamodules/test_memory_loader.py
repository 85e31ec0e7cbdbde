import pytest
import pytorch_lightning as pl
import torch

from datamodules import Loader
from lightning_ecd.errors import UserError

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SAMPLES = 23


def numbers(**settings):
    """A loader over the numbers 0 to 22, which are their own labels."""
    data = torch.arange(SAMPLES)
    return Loader((data, data.clone()), **({"batch_size": 4} | settings))


def seen(loader, epoch=None):
    if epoch is not None:
        loader.set_epoch(epoch)
    return [batch[0].tolist() for batch in loader]


def flat(batches):
    return [number for batch in batches for number in batch]


class Recorder(pl.LightningModule):
    """A module of one parameter that remembers which samples it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch):
        self.batches.append((self.current_epoch, batch[0].tolist()))
        return self.weight * batch[0].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(pl.Callback):
    def __init__(self, epoch, batch, path):
        self.when, self.path = (epoch, batch), path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.when:
            trainer.save_checkpoint(self.path)


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**(quiet | {"max_epochs": 3} | settings))


ORDERS = ["shuffled", "sequential", "replacement", "independent"]


@pytest.mark.parametrize("order", ORDERS)
def test_order_is_a_function_of_seed_and_epoch(order):
    one, other = numbers(order=order, seed=3), numbers(order=order, seed=3)
    seen(one, 0), seen(one, 1)
    torch.manual_seed(17)
    assert seen(one, 5) == seen(other, 5)


@pytest.mark.parametrize("order", ["shuffled", "replacement", "independent"])
def test_order_changes_with_seed_and_epoch(order):
    loader = numbers(order=order)
    assert seen(loader, 0) != seen(loader, 1)
    assert seen(loader, 0) != seen(numbers(order=order, seed=1), 0)


def test_shuffled_epochs_cover_every_sample_once():
    loader = numbers()
    for epoch in range(3):
        assert sorted(flat(seen(loader, epoch))) == list(range(SAMPLES))


def test_sequential_epochs_are_in_order():
    assert flat(seen(numbers(order="sequential"))) == list(range(SAMPLES))


def test_draws_with_replacement_repeat_samples_uniformly():
    data = torch.arange(10)
    loader = Loader((data,), batch_size=10, order="replacement")
    counts = torch.zeros(10)
    for epoch in range(1000):
        (draws,) = torch.tensor(seen(loader, epoch))
        counts += torch.bincount(draws, minlength=10)
    # binomial(10000, 1/10) has the standard deviation 30
    assert (counts - 1000).abs().max() < 150
    assert len(set(flat(seen(loader, 0)))) < 10


def test_independent_batches_are_distinct_within_and_uniform_over_all():
    loader = numbers(order="independent", steps_per_epoch=3000)
    batches = seen(loader, 0)
    assert len(batches) == len(loader) == 3000
    assert all(len(set(batch)) == 4 for batch in batches)
    counts = torch.bincount(torch.tensor(flat(batches)), minlength=SAMPLES)
    expected = 3000 * 4 / SAMPLES
    deviation = (expected * (1 - 4 / SAMPLES)) ** 0.5
    assert (counts - expected).abs().max() < 4 * deviation
    # of shuffled epochs no two batches share a sample
    assert any(set(a) & set(b) for a, b in zip(batches, batches[1:], strict=False))


@pytest.mark.parametrize("size, length", [(4, 5), (SAMPLES, 1)])
def test_an_epoch_of_independent_batches_has_what_fits(size, length):
    batches = seen(numbers(order="independent", batch_size=size), 3)
    assert [len(batch) for batch in batches] == [size] * length


def test_tensors_stay_together():
    for first, second in numbers():
        assert torch.equal(first, second)


def test_indices_select_the_split():
    split = torch.tensor([2, 3, 5, 7, 11])
    loader = numbers(indices=split, batch_size=2)
    assert sorted(flat(seen(loader))) == [2, 3, 5, 7, 11]
    assert loader.tensors[0].shape == (SAMPLES,)


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"last": "short"}, [4, 4, 4, 4, 4, 3]),
        ({"last": "drop"}, [4, 4, 4, 4, 4]),
        ({"last": "even"}, [3, 4, 4, 4, 4, 4]),
        ({"minibatches": 2}, [8, 8, 6]),
        ({"minibatches": 5}, [20]),
        ({"world_size": 2}, [4, 4, 3]),
        ({"world_size": 5}, [4]),
        ({"world_size": 2, "minibatches": 2}, [8, 2]),
    ],
)
def test_length_is_the_number_of_batches(settings, sizes):
    loader = numbers(**settings)
    assert [len(batch) for batch in seen(loader)] == sizes
    assert len(loader) == len(sizes)


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_partition_what_one_rank_would_see(ranks, minibatches):
    share = {"batch_size": 2, "minibatches": minibatches, "last": "drop"}
    parts = [
        seen(numbers(**share, rank=rank, world_size=ranks), 4) for rank in range(ranks)
    ]
    whole = seen(numbers(**(share | {"batch_size": 2 * ranks})), 4)
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        chunks = torch.tensor(batch).chunk(minibatches)
        for k, chunk in enumerate(chunks):
            mine = [torch.tensor(share).chunk(minibatches)[k] for share in shares]
            assert sorted(torch.cat(mine).tolist()) == sorted(chunk.tolist())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_even_evaluation_leaves_no_sample_out_on_any_rank(ranks):
    settings = {"last": "even", "order": "sequential", "world_size": ranks}
    parts = [seen(numbers(**settings, rank=rank)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    sizes = {len(batch) for part in parts for batch in part}
    assert max(sizes) - min(sizes) <= 1 and 1 <= min(sizes) and max(sizes) <= 4
    assert sorted(number for part in parts for number in flat(part)) == list(
        range(SAMPLES)
    )


@pytest.mark.parametrize("position", [1, 3, 5])
def test_restored_state_continues_with_the_next_batch(position):
    whole = seen(numbers(), 2)
    first = numbers()
    first.set_epoch(2)
    batches = iter(first)
    for _ in range(position):
        next(batches)
    second = numbers()
    second.load_state_dict(first.state_dict())
    second.set_epoch(2)
    assert seen(second) == whole[position:]
    assert seen(second) == whole, "only the first iteration is a continuation"


def test_restored_state_is_ignored_in_another_epoch():
    loader = numbers()
    loader.load_state_dict({"epoch": 1, "position": 3, "batches": 6, "seed": 0})
    loader.set_epoch(2)
    assert loader.state_dict()["position"] == 0
    assert seen(loader) == seen(numbers(), 2)


def test_state_round_trips_before_any_batch():
    state = {"epoch": 1, "position": 3, "batches": 6, "seed": 0}
    loader = numbers()
    loader.load_state_dict(state)
    loader.set_epoch(1)
    assert loader.state_dict() == state


@pytest.mark.parametrize("changed", [{"batch_size": 5}, {"seed": 1}])
def test_an_epoch_is_not_continued_with_other_settings(changed):
    state = {"epoch": 1, "position": 3, "batches": 6, "seed": 0}
    loader = numbers(**changed)
    loader.load_state_dict(state)
    loader.set_epoch(1)
    with pytest.raises(UserError, match="batches = 6|seed = 0"):
        next(iter(loader))
    loader.load_state_dict(state)
    loader.set_epoch(2)
    assert len(seen(loader)) == len(loader), "a new epoch may have new settings"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("batch_size", {"batch_size": 0}),
        ("minibatches", {"minibatches": 0}),
        ("order", {"order": "random"}),
        ("steps_per_epoch", {"order": "independent", "steps_per_epoch": 0}),
        ("steps_per_epoch", {"steps_per_epoch": 3}),
        ("batch_size", {"order": "independent", "batch_size": 24}),
        ("last", {"last": "keep"}),
        ("minibatches", {"last": "even", "minibatches": 2}),
        ("rank", {"rank": 2, "world_size": 2}),
        ("batch_size", {"batch_size": 24, "last": "drop"}),
        ("batch_size", {"minibatches": 24}),
        ("batch_size", {"world_size": 24, "last": "even"}),
    ],
)
def test_bad_arguments_are_refused_by_name(name, settings):
    with pytest.raises(ValueError, match=name):
        numbers(**settings)


def test_tensors_of_different_length_are_refused():
    with pytest.raises(ValueError, match="tensors"):
        Loader((torch.zeros(3), torch.zeros(4)), batch_size=1)


def test_every_epoch_of_a_fit_sees_every_batch():
    module = Recorder()
    trainer().fit(module, numbers())
    for epoch in range(3):
        batches = [batch for when, batch in module.batches if when == epoch]
        assert batches == seen(numbers(), epoch)


def test_limited_epochs_of_a_fit_begin_at_their_beginning():
    module = Recorder()
    trainer(limit_train_batches=2).fit(module, numbers())
    for epoch in range(3):
        batches = [batch for when, batch in module.batches if when == epoch]
        assert batches == seen(numbers(), epoch)[:2]


@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (1, 2), (1, 5), (2, 4)])
def test_a_resumed_fit_sees_exactly_the_remaining_batches(tmp_path, epoch, batch):
    path = tmp_path / "middle.ckpt"
    whole, rest = Recorder(), Recorder()
    trainer(callbacks=SaveAfter(epoch, batch, path)).fit(whole, numbers())
    trainer().fit(rest, numbers(), ckpt_path=path)
    assert rest.batches == whole.batches[epoch * 6 + batch + 1 :]
    assert torch.equal(rest.weight, whole.weight)


def test_a_resumed_fit_draws_the_same_augmentation(tmp_path):
    def noise(batch, generator):
        return batch + torch.rand(batch.shape, generator=generator)

    path = tmp_path / "middle.ckpt"
    whole, rest = Recorder(), Recorder()
    stop = SaveAfter(1, 2, path)
    trainer(callbacks=stop).fit(whole, numbers(augment=noise))
    trainer().fit(rest, numbers(augment=noise), ckpt_path=path)
    assert rest.batches == whole.batches[9:]
    assert torch.equal(rest.weight, whole.weight)


def test_augmentation_depends_on_seed_epoch_batch_and_rank_only():
    def noise(batch, generator):
        return torch.rand(batch.shape, generator=generator)

    def draws(epoch=0, **settings):
        return flat(seen(numbers(augment=noise, **settings), epoch))

    assert draws() == draws()
    assert len(set(draws())) == SAMPLES
    for other in (draws(1), draws(seed=1), draws(rank=1, world_size=2)):
        assert not set(draws()) & set(other)
