"""Samples of two populations, to learn the ratio of their densities from."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from datamodules.downloads import DEFAULT_FOLDER, REMEDY, data_root
from datamodules.memory import DataModule, Loader, Order
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.randomness import generator

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

SAMPLE_STREAM = 3  # after those of datamodules.memory


class Populations(DataModule):
    """Samples x (B, d) of two populations and labels y (B,): 1 for p1, 0 for p0.

    The tensors are float32, move to the training device once, and all ranks share
    their samples out.

    Args:
        batch_size: Samples in a mini-batch of one rank.
        seed: Of the order of the batches, and of the samples where they are drawn.
        minibatches: Mini-batches in a loader batch, which is that many times larger.
        order: Of the training samples in an epoch: "shuffled", "sequential", or
            independent draws with "replacement", or "independent" batches of distinct
            samples.
        eval_batch_size: The most samples in a batch of validation, test, prediction.
    """

    #: Numbers in a sample, d.
    dimensions: int

    def __init__(
        self,
        batch_size: int = 1000,
        seed: int = 0,
        minibatches: int = 1,
        order: Order = "shuffled",
        eval_batch_size: int = 10000,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(1, minibatches=minibatches)
        at_least(1, eval_batch_size=eval_batch_size)
        one_of(get_args(Order), order=order)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.minibatches, self.order = seed, minibatches, order
        self._parts: dict[Part, tuple[Tensor, ...]] = {}
        # The number of mini-batches belongs to the model: Lightning refuses to log
        # one name with two values.
        self.save_hyperparameters(ignore=["minibatches"])

    @abstractmethod
    def read(self, part: Part) -> tuple[Tensor, ...]:
        """Return x (N, d) and y (N,) of a part, and the exact ratio (N,) if known."""

    def part(self, part: Part) -> tuple[Tensor, ...]:
        """Return what `read` returns, read once, on the device of the trainer."""
        tensors = self._parts.get(part) or self.read(part)
        self._parts[part] = tuple(tensor.to(self.device) for tensor in tensors)
        return self._parts[part]

    def train_dataloader(self) -> Loader:
        """Return the loader of the training samples: x and y alone."""
        return self._loader(
            self.part("train")[:2],
            batch_size=self.batch_size,
            minibatches=self.minibatches,
            order="sequential" if self.overfits else self.order,
        )

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the validation samples, or an empty list."""
        return self._evaluation("val")

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the test samples, or an empty list."""
        return self._evaluation("test")

    def predict_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the test samples, in their own order."""
        return self._evaluation("test")

    def _evaluation(self, part: Part) -> Loader | list[Loader]:
        tensors, order = self.part(part), "sequential"
        if len(tensors[0]) == 0:
            return []
        size = self.eval_batch_size
        return self._loader(tensors, batch_size=size, order=order, last="even")

    def _loader(self, tensors: tuple[Tensor, ...], **settings: Any) -> Loader:
        return Loader(
            tensors,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            **settings,
        )


class Gaussians(Populations):
    r"""Samples of two normal distributions, labelled by a fair coin.

    .. math::
        y \sim \{0, 1\}, \quad x \sim N(\mu_y, \Sigma_y), \quad
        (\Sigma_y)_{ij} = \sigma_{yi} \sigma_{yj} (\rho_y + (1 - \rho_y) \delta_{ij})

    With the defaults the exact ratio p1(x) / p0(x) is exp(0.2 x). Every part is a
    function of the seed alone, whatever the sizes of the others.

    Args:
        dimensions: Numbers in a sample, d.
        mean_1: Mean of p1: one number for all coordinates, or one for each.
        mean_0: Mean of p0, likewise.
        std_1: Standard deviation of p1, likewise, above 0.
        std_0: Standard deviation of p0, likewise, above 0.
        correlation_1: Of any two coordinates under p1, above -1 / (d - 1), below 1.
        correlation_0: Of any two coordinates under p0, likewise.
        train_size: Samples for training.
        val_size: Samples for validation; 0: none.
        test_size: Samples for testing; 0: none.
        kwargs: As for `Populations`.

    Reference:
        G. B. De Luca, B. Nachman, E. Silverstein, H. Zheng, Optimizers for stabilizing
        likelihood-free inference, arXiv 2501.18419, has the one-dimensional pair.
    """

    def __init__(
        self,
        dimensions: int = 1,
        mean_1: float | list[float] = 0.1,
        mean_0: float | list[float] = -0.1,
        std_1: float | list[float] = 1.0,
        std_0: float | list[float] = 1.0,
        correlation_1: float = 0.0,
        correlation_0: float = 0.0,
        train_size: int = 10000,
        val_size: int = 10000,
        test_size: int = 10000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least(1, dimensions=dimensions)
        at_least(1, train_size=train_size)
        at_least(0, val_size=val_size, test_size=test_size)
        self.dimensions = dimensions
        self.sizes = dict(zip(PARTS, (train_size, val_size, test_size), strict=True))
        settings = (
            (mean_0, std_0, correlation_0, "0"),
            (mean_1, std_1, correlation_1, "1"),
        )
        self.laws = [_normal(dimensions, *setting) for setting in settings]

    def read(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        size = self.sizes[part]
        draws = generator(self.seed, SAMPLE_STREAM, PARTS.index(part))
        y = torch.randint(2, (size,), generator=draws)
        z = torch.randn(size, self.dimensions, generator=draws, dtype=torch.float64)
        x0, x1 = (law.mean + z @ law.scale_tril.T for law in self.laws)
        x = torch.where(y.bool().unsqueeze(1), x1, x0)
        ratio = self.log_ratio(x).exp()
        return x.float(), y.float(), ratio.float()

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return ln p1(x) - ln p0(x), shape (N,), of x (N, d), in the type of x."""
        point = x.detach().cpu().double()
        p0, p1 = (law.log_prob(point) for law in self.laws)
        return (p1 - p0).to(x)


class Samples(Populations):
    """Samples of two populations from the user's own files.

    Read from ``<data_dir>/Samples/<dataset>``, arrays written by ``numpy.save``:
    ``train_x.npy`` (N, d) or (N,) and ``train_y.npy`` (N,) of zeros and ones, the same
    with ``val_`` and ``test_`` if there are any, and ``test_ratio.npy`` (N,) where the
    exact ratio p1(x) / p0(x) is known, likewise ``val_ratio.npy``.

    Args:
        dataset: Name of the folder.
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        standardize: Shift and scale every coordinate to mean 0 and variance 1 over
            the training samples.
        kwargs: As for `Populations`.
    """

    def __init__(
        self,
        dataset: str,
        data_dir: str = DEFAULT_FOLDER,
        standardize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset, self.data_dir = dataset, data_dir
        self.standardize = standardize

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return data_root(self.data_dir) / "Samples" / self.dataset

    def setup(self, stage: str | None = None) -> None:
        """Learn the number of coordinates from the training samples.

        Args:
            stage: "fit", "validate", "test" or "predict"; None: all.
        """
        self.dimensions = self.part("train")[0].shape[1]

    def read(self, part: Part) -> tuple[Tensor, ...]:  # noqa: D102
        train = self._array("train_x")
        train = train.reshape(len(train), -1)
        x, y = train, self._array(f"{part}_y", part == "train")
        if part != "train":
            x = self._array(f"{part}_x", False).reshape(-1, train.shape[1])
        if self.standardize:
            spread = train.std(0)
            x = (x - train.mean(0)) / np.where(spread > 0, spread, 1)
        arrays = [x, y]
        if (self.folder / f"{part}_ratio.npy").is_file():
            arrays.append(self._array(f"{part}_ratio"))
        lengths = [len(array) for array in arrays]
        if len(set(lengths)) > 1 or not np.isin(y, (0, 1)).all():
            raise UserError(
                f"{self.folder}/{part}_*.npy must have one length, and y be 0 or 1; "
                f"the lengths are {lengths}"
            )
        return tuple(torch.from_numpy(array).float() for array in arrays)

    def _array(self, name: str, required: bool = True) -> np.ndarray:
        """Return an array of numbers, an empty one if the file may be missing."""
        file = self.folder / f"{name}.npy"
        if not file.is_file():
            if required:
                raise UserError(
                    f"{file} is missing: save the samples there with numpy.save, or "
                    f"{REMEDY} that has them"
                )
            return np.zeros(0)
        try:
            return np.load(file, allow_pickle=False).astype(np.float64)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(f"{file} is no array of numbers: {error}") from error


def _normal(
    d: int,
    mean: float | list[float],
    std: float | list[float],
    correlation: float,
    label: str,
) -> MultivariateNormal:
    """Return a normal distribution, in float64; `label` names it in errors."""
    center = _coordinates(f"mean_{label}", mean, d)
    scale = _coordinates(f"std_{label}", std, d)
    if (scale <= 0).any():
        raise ValueError(f"std_{label} must be above 0, got {std}")
    lowest = -1 / (d - 1) if d > 1 else -1
    if not lowest < correlation < 1:
        raise ValueError(
            f"correlation_{label} must lie in ({lowest:g}, 1), got {correlation}"
        )
    matrix = torch.full((d, d), correlation, dtype=torch.float64).fill_diagonal_(1)
    covariance = scale * matrix * scale.unsqueeze(1)
    return MultivariateNormal(center, covariance, validate_args=False)


def _coordinates(name: str, value: float | list[float], d: int) -> Tensor:
    """Return one number for each coordinate, shape (d,), in float64."""
    vector = torch.as_tensor(value, dtype=torch.float64)
    if vector.numel() not in (1, d):
        raise ValueError(f"{name} must have 1 or {d} numbers, got {vector.numel()}")
    return vector.reshape(-1).expand(d)
