"""Tables of numbers: columns, splits, scaling, files that are missing or broken."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets
from sklearn.model_selection import train_test_split

from datamodules import UCI, Digits, Regression, SmallImages, SyntheticPowerLaw
from datamodules import uci as uci_module
from datamodules.uci import TABLES
from lightning_ecd.errors import UserError
from lightning_ecd.theory import synthetic_kernel

#: Rows and inputs of every table, and the target's mean.
KNOWN = {
    "bike_sharing": (17379, 12, 189.4631),
    "sgemm": (241600, 14, 217.572),
    "california_housing": (20640, 8, 2.0686),
    "concrete": (1030, 8, None),
    "energy": (768, 8, None),
    "kin8nm": (8192, 8, None),
    "naval": (11934, 16, None),
    "power_plant": (9568, 4, None),
    "protein": (45730, 9, None),
    "wine_red": (1599, 11, None),
    "yacht": (308, 6, None),
}


def real(name, **settings):
    data = UCI(name, **settings)
    root = Path(os.environ.get("LIGHTNING_ECD_DATA", "nowhere"))
    if not (root / TABLES[name].path).is_file():
        pytest.skip(f"LIGHTNING_ECD_DATA names no folder with {TABLES[name].path}")
    return data


class Given(Regression):
    """A table that a test makes up."""

    def __init__(self, x, y, **settings):
        super().__init__(**settings)
        self.given = torch.as_tensor(x).double(), torch.as_tensor(y).double()

    def read(self):
        return self.given


def made_up(rows=40, **settings):
    draws = np.random.default_rng(0)
    x = draws.normal(size=(rows, 3)) * [1, 10, 0] + [0, 5, 7]
    return Given(x, 3 * x[:, 0] + 2, **settings)


@pytest.mark.parametrize("name", TABLES)
def test_tables_have_their_published_sizes(name):
    x, y = real(name).read()
    rows, columns, mean = KNOWN[name]
    assert x.shape == (rows, columns) and y.shape == (rows,)
    assert x.isfinite().all() and y.isfinite().all()
    if mean is not None:
        assert y.mean().item() == pytest.approx(mean, abs=6e-5 * abs(mean))


def test_the_target_of_bike_sharing_is_not_among_its_inputs():
    x, y = real("bike_sharing").read()
    sums = x @ torch.linalg.lstsq(x, y[:, None]).solution
    assert (sums[:, 0] - y).abs().max() > 100  # casual + registered would give it
    assert x[:, 0].unique().tolist() == [1, 2, 3, 4]  # the season comes first


def test_a_step_of_scaling_makes_training_columns_standard():
    data = made_up(samples=30)
    data.setup()
    loader = data.train_dataloader()
    x, y = (tensor[loader.indices] for tensor in loader.tensors)
    assert x.shape == (30, 3)
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x[:, :2].std(0), torch.ones(2))
    assert (x[:, 2] == 0).all()  # constant: no division by 0
    assert y.mean().abs() < 1e-6 and y.std().item() == pytest.approx(1)
    raw = data.given[1][loader.indices]
    mean, std = data.target_moments
    torch.testing.assert_close((y * std + mean).double(), raw, rtol=1e-5, atol=1e-5)


def test_training_samples_are_those_of_scikit_learn():
    data = made_up(samples=30, split_seed=5, val_size=4)
    parts = data.split(40)
    train, rest = train_test_split(np.arange(40), train_size=30, random_state=5)
    assert parts[0].tolist() == train.tolist()
    assert parts[1].tolist() == rest[:4].tolist()
    assert parts[2].tolist() == rest[4:].tolist()


def test_validation_takes_half_of_what_is_left_at_most():
    sizes = [len(part) for part in made_up(val_size=100).split(40)]
    assert sizes == [36, 2, 2]


def test_without_samples_left_all_train():
    data = made_up(samples=40)
    assert [len(part) for part in data.split(40)] == [40, 0, 0]
    assert data.val_dataloader() == [] and data.test_dataloader() == []


def test_batches_are_independent_and_of_steps():
    loader = made_up(samples=30, batch_size=7, steps_per_epoch=11).train_dataloader()
    assert loader.order == "independent" and len(loader) == 11
    assert all(len(x) == 7 for x, _ in loader)


def test_digits_are_scaled_together():
    data = SmallImages(samples=500)
    data.setup()
    loader = data.train_dataloader()
    x = loader.tensors[0][loader.indices]
    assert x.mean().abs() < 1e-5 and x.std().item() == pytest.approx(1, rel=1e-4)
    pixels = datasets.load_digits().data[loader.indices]
    expected = (pixels - pixels.mean()) / pixels.std(ddof=1)
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_a_linear_net_on_the_synthetic_problem_has_its_kernel():
    data = SyntheticPowerLaw(1.5, 0.75, 30, split_seed=3)
    x, y = data.read()
    K, d = synthetic_kernel(data.spectrum, 3)
    torch.testing.assert_close(x @ x.T, K, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(-y, d)


def broken(monkeypatch, tmp_path, content, suffix=""):
    table = TABLES["yacht"]
    file = tmp_path / (table.path.removesuffix(".gz") + suffix)
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return UCI("yacht", data_dir=str(tmp_path)), file


def test_plain_and_packed_files_are_read(tmp_path, monkeypatch):
    source = real("yacht")
    text = gzip.decompress(source._found().read_bytes())
    plain, _ = broken(monkeypatch, tmp_path, text)
    assert torch.equal(plain.read()[0], source.read()[0])


def test_a_changed_file_is_refused_by_name(tmp_path, monkeypatch):
    data, file = broken(monkeypatch, tmp_path, b"1 2 3\n")
    with pytest.raises(UserError, match=f"{file} is not the file"):
        data.read()


def test_a_truncated_file_is_refused_by_name(tmp_path, monkeypatch):
    packed = gzip.compress(b"1 2 3\n" * 100)[:-9]
    data, file = broken(monkeypatch, tmp_path, packed, ".gz")
    with pytest.raises(UserError, match=f"{file} cannot be read"):
        data.read()


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"sgemm_product.csv.gz is missing.*data_dir"):
        UCI("sgemm", data_dir=str(tmp_path)).read()


def test_a_missing_file_is_downloaded_and_checked(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(uci_module, "fetch", lambda *args: calls.append(args))
    UCI("yacht", data_dir=str(tmp_path)).prepare_data()
    ((path, mirrors, md5),) = calls
    assert path == tmp_path / "uci/regression/yacht/data.txt"
    assert mirrors[0].endswith("/yacht/data/") and md5 == TABLES["yacht"].md5


@pytest.mark.parametrize(
    "name, settings",
    [
        ("batch_size", {"batch_size": 0}),
        ("samples", {"samples": -1}),
        ("val_size", {"val_size": -1}),
        ("order", {"order": "random"}),
        ("dataset", {"dataset": "boston"}),
    ],
)
def test_bad_arguments_are_refused_by_name(name, settings):
    with pytest.raises(ValueError, match=name):
        UCI(**settings)


# -- images as regression --------------------------------------------------------


def test_classes_become_numbers_of_unit_variance():
    data = Digits(targets="numbers", scale="global", val_size=100)
    loader = data.train_dataloader()
    labels = data.whole("train")[1].double()
    expected = (labels - labels.mean()) / labels.std()
    torch.testing.assert_close(loader.tensors[1].double(), expected, rtol=1e-5, atol=0)
    assert data.target_moments == (labels.mean().item(), labels.std().item())
    (x, y) = next(iter(loader))
    assert y.dtype == torch.float32 and x.dtype == torch.float32
    # the test set is scaled by the training set's numbers
    test = data.test_dataloader().tensors[1]
    mean, std = data.target_moments
    whole = data.whole("test")[1]
    torch.testing.assert_close(test * std + mean, whole.float(), rtol=1e-5, atol=1e-5)


def test_global_scaling_is_by_all_pixels():
    data = Digits(scale="global", val_size=0, order="sequential", batch_size=1500)
    (x, _) = next(iter(data.train_dataloader()))
    assert x.mean().abs() < 1e-5 and x.std().item() == pytest.approx(1, rel=1e-5)


def test_a_subset_has_the_shares_of_the_classes():
    data = Digits(samples=200, val_size=50, split_seed=42)
    train, val = data.split()
    labels = data.whole("train")[1]
    expected, rest = train_test_split(
        np.arange(1500), train_size=200, stratify=labels.numpy(), random_state=42
    )
    assert train.tolist() == expected.tolist()
    assert val.tolist() == rest[:50].tolist()
    counts, whole = (
        torch.bincount(part, minlength=10) for part in (labels[train], labels)
    )
    assert (counts - 200 * whole / 1500).abs().max() <= 1


@pytest.mark.parametrize("settings", [{"samples": 0}, {"samples": 1300}])
def test_subsets_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="samples"):
        Digits(**settings)
