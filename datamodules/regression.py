"""Data modules of inputs and one number to predict, kept in memory."""

from abc import abstractmethod
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules.memory import DataModule, Loader, Order
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.theory import from_power_law, synthetic_kernel


class Regression(DataModule):
    """Inputs x (B, d) and a number y (B,), float32, of mean 0 and variance 1.

    Means and standard deviations are those of the training samples, column by column;
    a column that is constant there is left out of the scaling, 0 everywhere it has
    that value.

    Args:
        batch_size: Samples in a mini-batch of one rank.
        samples: For training; None: nine tenths. If there are no more, all are.
        val_size: The most for validation, at most half of what is left; the others
            are for the test.
        seed: Of the order of the batches.
        split_seed: Of the split.
        minibatches: Mini-batches in a loader batch, which is that many times larger.
        order: Of the training samples: "independent" batches of distinct samples,
            as the theory has it; "shuffled" epochs; see `Loader`.
        steps_per_epoch: Batches in an epoch of independent ones; None: what fits.
        eval_batch_size: The most samples in a batch of validation, test, prediction.
    """

    #: Of columns by themselves, or of all inputs together.
    columns: ClassVar[bool] = True
    #: Whether anything is scaled.
    standardised: ClassVar[bool] = True
    #: Whether they are numbers of classes, as those of `Images` may be: "numbers".
    targets: ClassVar[str] = ""

    def __init__(
        self,
        batch_size: int = 10,
        samples: int | None = None,
        val_size: int = 1000,
        seed: int = 0,
        split_seed: int = 42,
        minibatches: int = 1,
        order: Order = "independent",
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 1000,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        at_least(1, minibatches=minibatches, samples=samples)
        at_least(0, val_size=val_size)
        one_of(get_args(Order), order=order)
        self.batch_size, self.samples, self.val_size = batch_size, samples, val_size
        self.seed, self.split_seed, self.minibatches = seed, split_seed, minibatches
        self.order, self.steps_per_epoch = order, steps_per_epoch
        self.eval_batch_size = eval_batch_size
        self._tensors: tuple[Tensor, Tensor] | None = None
        self._splits: tuple[Tensor, Tensor, Tensor] | None = None
        #: Mean and standard deviation of the target.
        self.target_moments: tuple[float, float] = (0.0, 1.0)
        # the number of mini-batches belongs to the model
        self.save_hyperparameters(ignore=["minibatches"])

    @abstractmethod
    def read(self) -> tuple[Tensor, Tensor]:
        """Return inputs (N, d) and numbers (N,), float64, as they are in the files."""

    def setup(self, stage: str | None = None) -> None:
        """Read, split and scale, once; all stages need the training samples."""
        if self._tensors is not None:
            return
        x, y = self.read()
        self._splits = self.split(len(y))
        train = self._splits[0]
        if self.standardised:
            mean, std = _moments(x[train], self.columns)
            x = (x - mean) / std
            mean, std = _moments(y[train], True)
            y = (y - mean) / std
            self.target_moments = mean.item(), std.item()
        self._tensors = x.float(), y.float()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input, (d,)."""
        self.setup()
        assert self._tensors is not None
        return tuple(self._tensors[0].shape[1:])

    def split(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the samples of training, validation and test.

        The training samples are those that scikit-learn's train_test_split draws.
        """
        count = self.samples or size - size // 10
        if count >= size:
            nothing = torch.arange(0)
            return torch.arange(size), nothing, nothing
        from sklearn.model_selection import train_test_split  # takes a second

        train, rest = train_test_split(
            torch.arange(size).numpy(), train_size=count, random_state=self.split_seed
        )
        val = min(self.val_size, (len(rest) + 1) // 2)
        parts = (train, rest[:val], rest[val:])
        one, two, three = (torch.from_numpy(part) for part in parts)
        return one, two, three

    def train_dataloader(self) -> Loader:
        """Return the loader of the training samples."""
        return self._loader(
            0,
            batch_size=self.batch_size,
            minibatches=self.minibatches,
            order="sequential" if self.overfits else self.order,
            steps_per_epoch=None if self.overfits else self.steps_per_epoch,
        )

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the validation samples, or an empty list."""
        return self._evaluation(1)

    def test_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the test samples, or an empty list."""
        return self._evaluation(2)

    def predict_dataloader(self) -> Loader | list[Loader]:
        """Return the loader of the test samples, in their own order."""
        return self._evaluation(2)

    def _evaluation(self, part: int) -> Loader | list[Loader]:
        self.setup()
        assert self._splits is not None
        if len(self._splits[part]) == 0:
            return []
        size, order = self.eval_batch_size, "sequential"
        return self._loader(part, batch_size=size, order=order, last="even")

    def _loader(self, part: int, **settings: Any) -> Loader:
        self.setup()
        assert self._tensors is not None and self._splits is not None
        x, y = self._tensors
        self._tensors = x.to(self.device), y.to(self.device)
        return Loader(
            self._tensors,
            self._splits[part],
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            **settings,
        )


def _moments(values: Tensor, columns: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, never 0: of columns, or of everything."""
    axis = 0 if columns else None
    mean, std = values.mean(axis), values.std(axis)
    return mean, torch.where(std > 0, std, 1.0)


class SyntheticPowerLaw(Regression):
    r"""A linear problem whose spectrum is a power law.

    Inputs are the rows of :math:`(N \lambda)^{1/2}` turned at random, so that a linear
    network without bias that starts at 0 has the kernel and the output error of
    `lightning_ecd.theory.synthetic_kernel`.

    Args:
        nu: ν > 0 of the eigenvalues :math:`k^{-\nu}`.
        kappa: κ > 0 of the squared coefficients, proportional to
            :math:`k^{-\kappa - 1}`.
        size: N samples, all for training.
        kwargs: As for `Regression`.
    """

    standardised = False

    def __init__(
        self, nu: float = 1.5, kappa: float = 0.75, size: int = 1000, **kwargs: Any
    ) -> None:
        super().__init__(samples=size, **kwargs)
        at_least(1, size=size)
        self.spectrum = from_power_law(nu, kappa, size)

    def read(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        K, d = synthetic_kernel(self.spectrum, self.split_seed)
        values, U = torch.linalg.eigh(K)
        return U * values.clamp_min(0).sqrt(), -d


class SmallImages(Regression):
    """Images that scikit-learn brings or downloads, to predict their class's number.

    All pixels are scaled together. "digits" comes along: 1797 images of 64 pixels;
    "olivetti_faces" is downloaded: 400 of 4096.

    Args:
        dataset: "digits" or "olivetti_faces".
        kwargs: As for `Regression`.
    """

    columns = False
    targets = "numbers"

    def __init__(self, dataset: str = "digits", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        one_of(("digits", "olivetti_faces"), dataset=dataset)
        self.dataset = dataset

    def read(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        from sklearn import datasets  # takes a second

        if self.dataset == "digits":
            data = datasets.load_digits()
        else:
            try:
                data = datasets.fetch_olivetti_faces()
            except OSError as error:
                raise UserError(
                    f"olivetti_faces could not be downloaded ({error}): connect, or "
                    "take dataset=digits, which comes along"
                ) from error
        x, y = (torch.from_numpy(np.asarray(v)) for v in (data.data, data.target))
        return x.double(), y.double()
