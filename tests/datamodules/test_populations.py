"""Samples of two populations: their laws, their exact ratio, their files."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from datamodules import Gaussians, Samples
from lightning_ecd.errors import UserError

#: A pair of three correlated coordinates.
PAIR = {
    "dimensions": 3,
    "mean_1": [0.5, -1.0, 0.0],
    "mean_0": 0.2,
    "std_1": [1.0, 2.0, 0.5],
    "std_0": 1.5,
    "correlation_1": -0.3,
    "correlation_0": 0.6,
}


def covariance(std, correlation):
    d = len(std)
    return [
        [std[i] * std[j] * (1 if i == j else correlation) for j in range(d)]
        for i in range(d)
    ]


P1 = multivariate_normal([0.5, -1.0, 0.0], covariance([1.0, 2.0, 0.5], -0.3))
P0 = multivariate_normal([0.2] * 3, covariance([1.5] * 3, 0.6))


# -- normal distributions ----------------------------------------------------------


def test_the_ratio_of_the_default_pair_is_an_exponential():
    x, y, ratio = Gaussians().read("train")
    assert (x.dtype, y.dtype, ratio.dtype) == (torch.float32,) * 3
    assert x.shape == (10000, 1) and y.shape == ratio.shape == (10000,)
    assert torch.allclose(ratio, torch.exp(0.2 * x[:, 0]), rtol=1e-6)


def test_log_ratio_is_that_of_the_densities():
    x = 2 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1)).double()
    found = Gaussians(**PAIR).log_ratio(x)
    assert found.dtype == torch.float64
    expected = P1.logpdf(x.numpy()) - P0.logpdf(x.numpy())
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-12)
    assert Gaussians(**PAIR).log_ratio(x.float()).dtype == torch.float32


@pytest.mark.parametrize(("label", "law"), [(1, P1), (0, P0)])
def test_samples_follow_the_law_of_their_label(label, law):
    x, y, _ = Gaussians(**PAIR, train_size=200_000).read("train")
    own = x[y == label].numpy().astype(np.float64)
    sigma = np.sqrt(np.diag(law.cov))
    assert (np.abs(own.mean(0) - law.mean) < 5 * sigma / np.sqrt(len(own))).all()
    assert np.allclose(np.cov(own.T), law.cov, rtol=0, atol=0.05)


def test_labels_are_a_fair_coin():
    _, y, _ = Gaussians(train_size=100_000).read("train")
    assert set(y.tolist()) == {0.0, 1.0}
    assert abs(y.mean() - 0.5) < 5 * 0.5 / 100_000**0.5


def test_weighting_by_the_ratio_turns_one_population_into_the_other():
    x, y, ratio = Gaussians(train_size=200_000).read("train")
    weights, values = ratio[y == 0].double(), x[y == 0, 0].double()
    # E0[r] = 1 and E0[r x] = E1[x] = 0.1; standard errors below 0.005
    assert weights.mean().item() == pytest.approx(1.0, abs=0.01)
    assert (weights * values).mean().item() == pytest.approx(0.1, abs=0.02)


def test_parts_are_functions_of_the_seed_alone():
    first, again = Gaussians(seed=3), Gaussians(seed=3, train_size=17)
    assert torch.equal(first.read("test")[0], again.read("test")[0])
    parts = [first.read(part)[0] for part in ("train", "val", "test")]
    others = [*parts, Gaussians(seed=4).read("train")[0]]
    for i, one in enumerate(others):
        assert not any(torch.equal(one, other) for other in others[i + 1 :])


def test_training_batches_hold_no_ratio_and_evaluations_do():
    data = Gaussians(train_size=30, val_size=7, test_size=5, batch_size=10)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [2, 2, 2]
    seen = torch.cat([x for x, _ in batches]).sort(0)[0]
    assert torch.equal(seen, data.read("train")[0].sort(0)[0])
    (x, y, ratio), *none = data.val_dataloader()
    assert not none and len(x) == len(y) == len(ratio) == 7
    found = next(iter(data.test_dataloader()))
    assert all(map(torch.equal, found, data.read("test")))


def test_a_part_of_no_samples_has_no_loader():
    data = Gaussians(val_size=0, test_size=0)
    assert data.val_dataloader() == data.test_dataloader() == []


def test_the_law_of_one_sample_in_one_dimension():
    data = Gaussians(mean_1=1.0, mean_0=-2.0, std_1=0.5, std_0=3.0)
    x = torch.tensor([[0.7]], dtype=torch.float64)
    expected = norm(1.0, 0.5).logpdf(0.7) - norm(-2.0, 3.0).logpdf(0.7)
    assert data.log_ratio(x).item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"dimensions": 0}, "dimensions must be at least 1"),
        ({"train_size": 0}, "train_size must be at least 1"),
        ({"val_size": -1}, "val_size must be at least 0"),
        ({"test_size": -1}, "test_size must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"minibatches": 0}, "minibatches must be at least 1"),
        ({"order": "sorted"}, "order must be one of"),
        ({"std_1": 0.0}, "std_1 must be above 0"),
        ({"dimensions": 2, "std_0": [1.0, -1.0]}, "std_0 must be above 0"),
        ({"mean_0": [1.0, 2.0]}, "mean_0 must have 1 or 1 numbers"),
        ({"dimensions": 3, "mean_1": [1.0, 2.0]}, "mean_1 must have 1 or 3 numbers"),
        ({"dimensions": 3, "correlation_1": -0.5}, r"correlation_1.*\(-0.5, 1\)"),
        ({"correlation_0": 1.0}, r"correlation_0 must lie in \(-1, 1\)"),
    ],
)
def test_bad_values_name_the_argument_and_the_range(settings, named):
    with pytest.raises(ValueError, match=named):
        Gaussians(**settings)


# -- files -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Files of two coordinates, and where the data module looks for them."""
    place = tmp_path / "Samples" / "toy"
    place.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for part, size in (("train", 40), ("test", 10)):
        np.save(
            place / f"{part}_x.npy", draws.normal([3.0, -1.0], [2.0, 0.1], (size, 2))
        )
        np.save(place / f"{part}_y.npy", draws.integers(0, 2, size))
    np.save(place / "test_ratio.npy", draws.uniform(0, 3, 10))
    return place


def samples(folder, **settings):
    return Samples("toy", data_dir=str(folder.parents[1]), batch_size=8, **settings)


def test_files_are_read_and_standardized_by_the_training_samples(folder):
    data = samples(folder)
    data.setup()
    assert data.dimensions == 2
    x, y = data.read("train")
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(x.std(0, correction=0), torch.ones(2), atol=1e-6)
    raw, train = np.load(folder / "test_x.npy"), np.load(folder / "train_x.npy")
    x, y, ratio = data.read("test")
    assert np.allclose(x, (raw - train.mean(0)) / train.std(0), atol=1e-6)
    assert np.allclose(ratio, np.load(folder / "test_ratio.npy"))
    assert y.dtype == torch.float32
    x, *_ = samples(folder, standardize=False).read("test")
    assert np.allclose(x, raw)
    assert data.val_dataloader() == []
    assert len(data.test_dataloader()) == 1


def test_batches_may_be_independent(folder):
    loader = samples(folder, order="independent").train_dataloader()
    rows = {tuple(row) for row in loader.tensors[0].tolist()}
    for x, _ in loader:
        assert len({tuple(row) for row in x.tolist()} & rows) == 8  # all distinct


def test_samples_of_one_number_may_be_a_vector(folder):
    for part, size in (("train", 40), ("test", 10)):
        np.save(folder / f"{part}_x.npy", np.arange(size, dtype=np.float32))
    data = samples(folder)
    data.setup()
    assert data.dimensions == 1
    assert data.read("test")[0].shape == (10, 1)


def test_the_environment_names_the_folder_of_all_data(folder, monkeypatch):
    monkeypatch.setenv("LIGHTNING_ECD_DATA", str(folder.parents[1]))
    assert Samples("toy").folder == folder
    assert Samples("toy", data_dir="elsewhere").folder != folder


def test_missing_and_broken_files_are_named(folder):
    with pytest.raises(UserError, match=r"other.train_x\.npy is missing.*numpy\.save"):
        Samples("other", data_dir=str(folder.parents[1])).read("train")
    (folder / "train_x.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"train_x\.npy is no array of numbers"):
        samples(folder).read("train")


def test_a_pickle_is_not_executed(folder):
    np.save(folder / "train_x.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="no array of numbers"):
        samples(folder).read("train")


@pytest.mark.parametrize("y", [np.zeros(39), np.full(40, 2)], ids=["short", "two"])
def test_labels_that_do_not_fit_are_refused(y, folder):
    np.save(folder / "train_y.npy", y)
    with pytest.raises(UserError, match=r"train_\*\.npy must have one length"):
        samples(folder).read("train")
