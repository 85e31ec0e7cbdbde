"""The pool: every data set is read and kept once, while it is open."""

import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import Digits
from lightning_ecd import pool


@pytest.fixture(autouse=True)
def closed():
    yield
    pool.close()


class Reads:
    """Counts how often it is read."""

    def __init__(self, value=1.0):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return (torch.tensor(self.value),)


def test_a_closed_pool_keeps_nothing():
    read = Reads()
    one, two = pool.lent(("a",), read), pool.lent(("a",), read)
    assert read.times == 2
    assert one[0] is not two[0]
    assert pool.content() == {}


def test_an_open_pool_reads_every_set_once():
    pool.open_()
    read, other = Reads(1.0), Reads(2.0)
    assert pool.lent(("a",), read)[0] is pool.lent(("a",), read)[0]
    assert pool.lent(("a", "b"), other)[0].item() == 2.0
    assert (read.times, other.times) == (1, 1)
    assert set(pool.content()) == {("a",), ("a", "b")}


def test_what_is_given_need_not_be_read():
    given, read = (torch.zeros(2),), Reads()
    pool.open_({("a",): given})
    assert pool.lent(("a",), read) is given
    assert read.times == 0


def test_opening_it_again_keeps_what_it_has():
    pool.open_()
    kept = pool.lent(("a",), Reads())
    pool.open_({("b",): (torch.ones(1),)})
    assert pool.lent(("a",), Reads()) is kept
    assert set(pool.content()) == {("a",), ("b",)}


def test_closing_forgets():
    pool.open_()
    pool.lent(("a",), Reads())
    pool.close()
    pool.close()
    assert pool.content() == {}
    pool.open_()
    read = Reads()
    pool.lent(("a",), read)
    assert read.times == 1


def test_its_content_is_a_copy():
    pool.open_()
    pool.content()[("a",)] = ()
    assert pool.content() == {}


def test_a_set_that_cannot_be_read_is_not_kept():
    pool.open_()

    def broken():
        raise OSError("no such file")

    with pytest.raises(OSError):
        pool.lent(("a",), broken)
    read = Reads()
    pool.lent(("a",), read)
    assert read.times == 1


# -- data modules --------------------------------------------------------------------


def images_of(**settings):
    data = Digits(**settings)
    data.setup("fit")
    data.setup("test")
    return [data._parts[part][0] for part in ("train", "test")]


def test_data_modules_share_their_tensors_while_it_is_open():
    pool.open_()
    train, test = images_of(batch_size=50)
    other_train, other_test = images_of(batch_size=25, seed=3, val_size=100)
    assert train.data_ptr() == other_train.data_ptr()
    assert test.data_ptr() == other_test.data_ptr()
    assert train.data_ptr() != test.data_ptr()
    assert len(pool.content()) == 2
    pool.close()
    assert images_of()[0].data_ptr() != train.data_ptr()


def test_another_class_is_another_set():
    class Inverted(Digits):
        def read(self, part):
            images, labels = super().read(part)
            return 16 - images, labels

    pool.open_()
    train = images_of()[0]
    inverted = Inverted()
    inverted.setup("fit")
    assert torch.equal(inverted._parts["train"][0], 16 - train)


def test_batches_of_a_shared_set_are_those_of_an_own_one():
    def batches():
        data = Digits(batch_size=50, normalize=True, seed=1)
        data.setup("fit")
        return [batch for _ in range(2) for batch in data.train_dataloader()]

    alone = batches()
    pool.open_()
    batches()  # may change nothing of what is kept
    shared = batches()
    for one, two in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    kept = sum(int(x.long().sum()) for x, _ in pool.content().values())
    assert kept <= int(load_digits().data.sum())
    assert all(x.dtype == torch.uint8 for x, _ in pool.content().values())
