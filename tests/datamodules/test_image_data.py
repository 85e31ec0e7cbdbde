import gzip
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torchvision
from jsonargparse import ArgumentParser
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torchvision.transforms import Compose, Normalize, ToTensor

from datamodules import MNIST, Digits, FashionMNIST, RandomShift

# Lightning 2.6 with torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

REAL = [MNIST, FashionMNIST]


def real(kind, **settings):
    """A data module on genuine files; the test skips where there are none."""
    folder = os.environ.get("LIGHTNING_ECD_DATA", "")
    if not Path(folder, kind.__name__, "raw").is_dir():
        pytest.skip(f"LIGHTNING_ECD_DATA names no folder with {kind.__name__}/raw")
    return kind(**settings)


class Linear(pl.LightningModule):
    """A linear classifier that counts the samples of each stage."""

    def __init__(self, shape):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(10))
        self.network(torch.zeros(2, *shape))
        self.counts = {"train": 0, "val": 0, "test": 0}

    def stage_step(self, stage, batch):
        images, labels = batch
        self.counts[stage] += len(images)
        loss = cross_entropy(self.network(images), labels)
        self.log(f"{stage}/loss", loss, batch_size=len(images))
        return loss

    def training_step(self, batch):
        return self.stage_step("train", batch)

    def validation_step(self, batch):
        return self.stage_step("val", batch)

    def test_step(self, batch):
        return self.stage_step("test", batch)

    def predict_step(self, batch):
        return self.network(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trainer(**settings):
    quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**(quiet | {"max_epochs": 2} | settings))


def samples(loader):
    """All images of a loader as a set of bytes."""
    return {image.numpy().tobytes() for batch in loader for image in batch[0]}


def test_digits_are_scikit_learns():
    data = Digits(val_size=0)
    loaders = (data.train_dataloader(), data.test_dataloader())
    ours = samples(loaders[0]) | samples(loaders[1])
    theirs = {
        (image / 16).astype("float32").tobytes() for image in load_digits().images
    }
    assert ours == theirs


def test_digits_split_into_disjoint_parts():
    data = Digits(val_size=300)
    parts = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(part.indices) for part in parts] == [1200, 300, 297]
    sets = [samples(part) for part in parts]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_the_test_set_of_digits_is_the_same_for_every_seed():
    one, other = Digits(seed=0), Digits(seed=1)
    assert samples(one.test_dataloader()) == samples(other.test_dataloader())
    assert samples(one.val_dataloader()) != samples(other.val_dataloader())


def test_labels_belong_to_their_images():
    digits = load_digits()
    known = {
        (image / 16).astype("float32").tobytes(): int(label)
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    for images, labels in Digits().train_dataloader():
        assert labels.dtype == torch.int64
        for image, label in zip(images, labels, strict=True):
            assert known[image.numpy().tobytes()] == label


def test_batches_have_the_announced_shape():
    data = Digits(batch_size=8, minibatches=3)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (24, *Digits.shape) and images.dtype == torch.float32
    assert labels.shape == (24,) and labels.max() < data.classes


def test_loaders_share_the_images():
    data = Digits()
    loaders = [data.train_dataloader(), data.val_dataloader()]
    loaders.append(data.train_dataloader())
    assert len({loader.tensors[0].data_ptr() for loader in loaders}) == 1


def test_loaders_can_be_pickled():
    loader = Digits(augment=RandomShift(1)).train_dataloader()
    copy = pickle.loads(pickle.dumps(loader))
    assert samples(copy) == samples(loader)


def test_a_fit_goes_over_training_and_validation_samples():
    data = Digits(batch_size=50, eval_batch_size=100, augment=RandomShift(1))
    module = Linear(data.shape)
    fitting = trainer(num_sanity_val_steps=0)
    fitting.fit(module, datamodule=data)
    assert module.counts == {"train": 2500, "val": 500, "test": 0}
    assert fitting.callback_metrics["val/loss"] < 1.8  # log 10 = 2.3 at the start
    fitting.test(module, datamodule=data, verbose=False)
    assert module.counts["test"] == 297
    predictions = torch.cat(fitting.predict(module, datamodule=data))
    right = predictions.argmax(1) == data.read("test")[1]
    assert right.float().mean() > 0.5  # guessing: 0.1


def test_a_fit_without_validation_runs():
    module = Linear(Digits.shape)
    with pytest.warns(UserWarning, match="length of `list` across ranks is zero"):
        trainer(max_epochs=1).fit(module, datamodule=Digits(val_size=0))
    assert module.counts == {"train": 1500, "val": 0, "test": 0}


def test_overfitting_repeats_the_same_batches():
    class Recorder(Linear):
        def training_step(self, batch):
            self.counts.setdefault("seen", []).append(batch[0].sum().item())
            return super().training_step(batch)

    module = Recorder(Digits.shape)
    with pytest.warns(UserWarning, match="overfit"):
        trainer(overfit_batches=2).fit(module, datamodule=Digits())
    first, second, *again = module.counts["seen"]
    assert again == [first, second] and first != second


def test_ranks_come_from_the_trainer():
    parts = []
    for rank in range(2):
        data = Digits(eval_batch_size=64)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            strategy=strategy, global_rank=rank, world_size=2, overfit_batches=0.0
        )
        parts.append([samples(data.train_dataloader()), samples(data.val_dataloader())])
    for one, other, size in zip(*parts, (1250, 250), strict=True):
        assert not one & other
        assert len(one | other) == size


def test_hyperparameters_are_plain_data_and_enough_to_rebuild():
    data = Digits(batch_size=10, seed=3, augment=RandomShift(1), minibatches=2)
    plain = {type(value) for value in data.hparams.values()}
    assert plain <= {int, bool, str, type(None)}
    again = Digits(**data.hparams)
    assert again.batch_size == 10 and again.seed == 3
    assert MNIST("folder").hparams["data_dir"] == "folder"


def test_the_command_line_builds_augmentations():
    parser = ArgumentParser()
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    augment = ["--data.augment=RandomShift", "--data.augment.pixels=3"]
    config = parser.parse_args(["--data=datamodules.MNIST", *augment])
    data = getattr(parser, "instantiate", parser.instantiate_classes)(config).data
    assert isinstance(data, MNIST) and data.augment.pixels == 3
    assert "augment" not in data.hparams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("minibatches", 0),
        ("eval_batch_size", -1),
        ("val_size", -1),
        ("val_size", 1500),
        ("order", "backwards"),
        ("last", "even"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Digits(**{name: value})


def test_a_batch_larger_than_the_data_is_refused_when_it_leaves_nothing():
    with pytest.raises(ValueError, match="batch_size"):
        Digits(batch_size=2000, last="drop").train_dataloader()


@pytest.mark.parametrize("kind", REAL)
def test_samples_equal_torchvisions_bit_for_bit(kind):
    data = real(kind)
    images, labels = data.read("test")
    loader = data.test_dataloader()
    first = next(iter(loader))
    pictures = [Image.fromarray(image[0].numpy()) for image in images[:100]]
    expected = torch.stack([ToTensor()(picture) for picture in pictures])
    assert torch.equal(first[0][:100], expected)
    assert torch.equal(first[1], labels[: len(first[1])])


@pytest.mark.parametrize("kind", REAL)
def test_normalised_samples_equal_torchvisions(kind):
    data = real(kind, normalize=True)
    images, _ = data.read("test")
    recipe = Compose([ToTensor(), Normalize(kind.mean, kind.std)])
    expected = [recipe(Image.fromarray(image[0].numpy())) for image in images[:100]]
    first = next(iter(data.test_dataloader()))[0][:100]
    torch.testing.assert_close(first, torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [*REAL, Digits])
def test_normalisation_constants_are_those_of_the_training_set(kind):
    data = Digits() if kind is Digits else real(kind)
    images = data.read("train")[0]
    counts = torch.bincount(images.flatten(), minlength=data.top + 1).double()
    values = torch.arange(data.top + 1, dtype=torch.float64) / data.top
    mean = (counts * values).sum() / counts.sum()
    variance = (counts * (values - mean) ** 2).sum() / counts.sum()
    assert kind.mean == (round(mean.item(), 4),)
    assert kind.std == (round(variance.sqrt().item(), 4),)


@pytest.mark.parametrize(
    ("kind", "part", "histogram"),
    [
        (
            MNIST,
            "train",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        ),
        (MNIST, "test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        (FashionMNIST, "train", [6000] * 10),
        (FashionMNIST, "test", [1000] * 10),
    ],
)
def test_labels_are_distributed_as_published(kind, part, histogram):
    data = real(kind)
    labels = data.files[f"{part} labels"].read(data.folder)
    assert torch.bincount(labels).tolist() == histogram


def test_torchvisions_own_unpacked_files_are_accepted(tmp_path):
    source = real(MNIST).folder
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in source.glob("t10k*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    images, labels = MNIST(str(tmp_path)).read("test")
    theirs = torchvision.datasets.mnist
    name = str(raw / "t10k-images-idx3-ubyte")
    assert torch.equal(images[:, 0], theirs.read_image_file(name))
    name = str(raw / "t10k-labels-idx1-ubyte")
    assert torch.equal(labels, theirs.read_label_file(name))


def test_the_split_may_have_a_seed_of_its_own():
    first, second = (Digits(seed=seed, split_seed=7) for seed in (1, 2))
    for one, other in zip(first.split(), second.split(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.split()[1], Digits(seed=1).split()[1])
    assert torch.equal(Digits(seed=7).split()[1], first.split()[1])
    orders = [next(iter(data.train_dataloader()))[1] for data in (first, second)]
    assert not torch.equal(*orders)


@pytest.mark.parametrize(("val_size", "count"), [(0.1, 150), (300, 300), (0, 0)])
def test_validation_takes_a_number_or_a_share(val_size, count):
    train, val = Digits(val_size=val_size).split()
    assert (len(train), len(val)) == (1500 - count, count)


@pytest.mark.parametrize("val_size", [1.0, 0.0, -0.5, 1500, -1, 1e-9, 250.0])
def test_shares_and_numbers_out_of_range_are_refused(val_size):
    with pytest.raises(ValueError, match="^val_size must lie in .0, 1499., or a share"):
        Digits(val_size=val_size)
