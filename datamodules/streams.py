"""Batches of many problems at once, cut into windows of successive steps."""

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from datamodules.downloads import DEFAULT_FOLDER
from datamodules.images import Images
from datamodules.memory import DataModule, Last, Loader
from datamodules.mnist import MNIST, Digits, FashionMNIST
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.randomness import generator, mixed
from lightning_ecd.unrolling import Window

Part = Literal["train", "val", "test"]
DataSet = Literal["MNIST", "FashionMNIST", "Digits"]

_PARTS = get_args(Part)
RUN_STREAM, LENGTH_STREAM, PASS_STREAM, PROBLEM_STREAM = range(10, 14)
#: Numbers of lengths that are drawn at once.
_BLOCK = 64


class Streams(DataModule):
    """Runs of many problems at once, in windows of W successive steps.

    A batch is a `lightning_ecd.unrolling.Window` of B runs side by side. What run and
    step a batch holds is a function of (seed, epoch, batch) alone. Subclasses say what
    the mini-batch of a step is.

    Args:
        runs: Runs side by side in training, B, on all ranks together; a multiple of
            their number.
        steps: Of a run.
        window: Steps W in a batch.
        runs_per_epoch: Runs one after the other in an epoch.
        val_runs: Runs of a validation, the same at every one.
        test_runs: Runs of a test.
        eval_runs: The most of them side by side.
        eval_steps: Of a run in validation and test; None: `steps`.
        last: What becomes of the end of a run that fills no window: "short" makes it
            a shorter one, "drop" leaves it out.
        stagger: Runs begin at different times, so that a window sees all of their
            phases and may hold the end of one run and the beginning of another.
        longest: With `stagger`, the number of steps is drawn for every run,
            log-uniformly between `steps` and this; None: all have `steps`.
        fresh_validation: Every validation has runs of its own.
        seed: Of everything that is drawn.
    """

    def __init__(
        self,
        runs: int = 1,
        steps: int = 100,
        window: int = 20,
        runs_per_epoch: int = 20,
        val_runs: int = 50,
        test_runs: int = 100,
        eval_runs: int = 1000,
        eval_steps: int | None = None,
        last: Last = "short",
        stagger: bool = False,
        longest: int | None = None,
        fresh_validation: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {"runs": runs, "steps": steps, "window": window}
        counts |= {"runs_per_epoch": runs_per_epoch, "val_runs": val_runs}
        counts |= {"test_runs": test_runs, "eval_runs": eval_runs}
        at_least(1, **counts, eval_steps=eval_steps)
        one_of(get_args(Last), last=last)
        if last == "drop" and window > steps:
            raise ValueError(f"window must be at most steps = {steps}, got {window}")
        if longest is not None and not stagger:
            raise ValueError("longest must be None without stagger")
        if longest is not None and longest < steps:
            raise ValueError(f"longest must be at least steps = {steps}, got {longest}")
        self.runs, self.steps, self.window = runs, steps, window
        self.runs_per_epoch, self.last = runs_per_epoch, last
        self.val_runs, self.test_runs, self.eval_runs = val_runs, test_runs, eval_runs
        self.eval_steps = steps if eval_steps is None else eval_steps
        self.stagger, self.longest = stagger, longest
        self.fresh_validation, self.seed = fresh_validation, seed
        self.save_hyperparameters()

    @abstractmethod
    def mini_batches(self, seeds: np.ndarray, steps: np.ndarray, part: Part) -> Any:
        """Return the mini-batches of some steps of some runs.

        Args:
            seeds: Of the runs, shape (W + 1, B).
            steps: Numbers of the steps within their runs, shape (W + 1, B).
            part: Whether to draw from what is for training or for evaluation.

        Returns:
            A tree of tensors (W + 1, B, ...), on the device; a pure function of the
            arguments.
        """

    def train_dataloader(self) -> "WindowLoader":
        """Return the loader of the runs for training."""
        if self.stagger:
            windows = self.runs_per_epoch * -(-self.steps // self.window)
        else:
            windows = self.runs_per_epoch * self._windows(self.steps, self.last)
        if self.runs % self.world_size:
            raise UserError(
                f"data.runs must be a multiple of the number of processes, "
                f"{self.world_size}, got {self.runs}"
            )
        return WindowLoader(
            windows, self._training, self.seed, self.rank, self.world_size
        )

    def val_dataloader(self) -> "WindowLoader":
        """Return the loader of the runs for validation."""
        return self._evaluation("val", self.val_runs)

    def test_dataloader(self) -> "WindowLoader":
        """Return the loader of the runs for testing."""
        return self._evaluation("test", self.test_runs)

    def _windows(self, steps: int, last: Last) -> int:
        whole, rest = divmod(steps, self.window)
        return whole + (rest > 0 and last == "short")

    def _evaluation(self, part: Part, runs: int) -> "WindowLoader":
        groups = -(-runs // self.eval_runs)
        windows = self._windows(self.eval_steps, "short")

        def window(epoch: int, batch: int, rank: int, world_size: int) -> Window:
            group, number = divmod(batch, windows)
            some = range(group * runs // groups, (group + 1) * runs // groups)
            lanes = np.array(some[rank::world_size], dtype=np.int64)
            fresh = epoch if part == "val" and self.fresh_validation else 0
            starts = number * self.window
            return self._aligned(part, fresh, lanes, starts, self.eval_steps)

        if runs // groups < self.world_size:
            raise UserError(
                f"data.{part}_runs must be at least the number of processes, "
                f"{self.world_size}, for each group of data.eval_runs"
            )
        return WindowLoader(
            groups * windows, window, self.seed, self.rank, self.world_size
        )

    def _training(self, epoch: int, batch: int, rank: int, world_size: int) -> Window:
        """Return this rank's part of a training batch."""
        lanes = np.arange(rank, self.runs, world_size)
        if self.stagger:
            first = (epoch * len(self.train_dataloader()) + batch) * self.window
            return self._staggered(lanes, first)
        windows = self._windows(self.steps, self.last)
        run, number = divmod(batch, windows)
        count = epoch * self.runs_per_epoch + run
        return self._aligned("train", count, lanes, number * self.window, self.steps)

    def _aligned(
        self, part: Part, count: int, lanes: np.ndarray, first: int, steps: int
    ) -> Window:
        """Return a window of runs that begin and end together."""
        numbers = np.arange(first, min(first + self.window, steps) + 1)
        step = np.broadcast_to(numbers[:, None], (len(numbers), len(lanes)))
        seeds = [self._run_seed(part, int(lane), count) for lane in lanes]
        seed = np.broadcast_to(np.array(seeds, dtype=np.int64), step.shape)
        return self._window(step, seed, step == steps - 1, part)

    def _staggered(self, lanes: np.ndarray, first: int) -> Window:
        """Return a window of runs in all their phases."""
        times = np.arange(first, first + self.window + 1)
        columns = [self._course(int(lane), times) for lane in lanes]
        step, count, last = (np.stack(part, 1) for part in zip(*columns, strict=True))
        seed = np.empty_like(step)
        for place, lane in enumerate(lanes):
            for run in np.unique(count[:, place]):
                value = self._run_seed("train", int(lane), int(run))
                seed[count[:, place] == run, place] = value
        return self._window(step, seed, last, "train")

    def _course(
        self, lane: int, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return step, number of the run and whether it ends, at the lane's times."""
        offset = int(self._lengths(lane, 0)[0] * self._phase(lane))
        places, ends = times + offset, np.zeros(0, dtype=np.int64)
        block = 0
        while not len(ends) or ends[-1] <= places[-1]:
            start = ends[-1] if len(ends) else 0
            ends = np.concatenate([ends, start + self._lengths(lane, block).cumsum()])
            block += 1
        run = np.searchsorted(ends, places, side="right")
        starts = np.concatenate([[0], ends])[run]
        step = places - starts
        # The first run of a lane begins at its offset: it is that much shorter.
        step = np.where(run == 0, step - offset, step)
        return step, run, places == ends[run] - 1

    def _phase(self, lane: int) -> float:
        draws = generator(self.seed, LENGTH_STREAM, lane)
        return float(torch.rand((), generator=draws))

    def _lengths(self, lane: int, block: int) -> np.ndarray:
        if self.longest is None:
            return np.full(_BLOCK, self.steps)
        draws = generator(self.seed, LENGTH_STREAM, lane, block)
        share = torch.rand(_BLOCK, generator=draws, dtype=torch.float64).numpy()
        longer = (self.longest / self.steps) ** share
        return np.rint(self.steps * longer).astype(np.int64)

    def _run_seed(self, part: Part, lane: int, count: int) -> int:
        return mixed(self.seed, RUN_STREAM, _PARTS.index(part), lane, count)

    def _window(
        self, step: np.ndarray, seed: np.ndarray, last: np.ndarray, part: Part
    ) -> Window:
        """Return the window of all rows but the last, which follows it."""
        batch = self.mini_batches(seed, step, part)
        return Window(batch, step[:-1], seed[:-1], last[:-1])


class WindowLoader(Loader):
    """Yields windows in order.

    Args:
        windows: In an epoch.
        window: Makes the window of an (epoch, batch, rank, number of ranks).
        seed: Of the data.
        rank: This process.
        world_size: The number of processes.
    """

    def __init__(
        self,
        windows: int,
        window: Callable[[int, int, int, int], Window],
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        # To the base class the data are the numbers of an epoch's windows.
        numbers = torch.arange(windows)
        super().__init__((numbers,), batch_size=1, order="sequential", seed=seed)
        self.window, self.share = window, (rank, world_size)

    def _batch(self, order: Tensor, batch: int) -> Any:
        return self.window(self.epoch, batch, *self.share)


class Quadratics(Streams):
    r"""Random quadratics :math:`|W \theta - y|^2`: a mini-batch is (W, y).

    W (d, d) and y (d) are standard normal, W drawn first, the same at all steps of a
    run. `modules.Quadratic` is the problem.

    Args:
        dimensions: d, at least 1.
        kwargs: As for `Streams`.
    """

    def __init__(self, dimensions: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least(1, dimensions=dimensions)
        self.dimensions = dimensions

    def mini_batches(  # noqa: D102
        self, seeds: np.ndarray, steps: np.ndarray, part: Part
    ) -> tuple[Tensor, Tensor]:
        constant = bool((seeds == seeds[:1]).all())
        runs, where = np.unique(seeds[0] if constant else seeds, return_inverse=True)
        pairs = [_quadratic(int(run), self.dimensions) for run in runs]
        index = torch.from_numpy(where)
        both = []
        for tensors in zip(*pairs, strict=True):
            chosen = torch.stack(tensors)[index].to(self.device)
            if constant:
                chosen = chosen.expand(len(seeds), *chosen.shape)
            both.append(chosen.view(*seeds.shape, *tensors[0].shape))
        return both[0], both[1]


@lru_cache(maxsize=4096)
def _quadratic(seed: int, d: int) -> tuple[Tensor, Tensor]:
    draws = generator(seed, PROBLEM_STREAM)
    return torch.randn(d, d, generator=draws), torch.randn(d, generator=draws)


class ImageStreams(Streams):
    """Mini-batches of labelled images, in an order of every run's own.

    The training images are shuffled once and for all; runs for training draw from one
    half, those for validation and test from the other. A run goes through its half
    without replacement, then again in a new order. Pixels lie in [0, 1]; a mini-batch
    is (images (b, C, H, W), labels (b,)).

    Args:
        dataset: "MNIST", "FashionMNIST", or "Digits", which needs no files.
        batch_size: Images b in a mini-batch.
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        split_seed: Of the two halves, numpy's RandomState.
        kwargs: As for `Streams`.

    Note:
        The released code ends a pass through its half with a smaller batch; here what
        fills no batch is left out of the pass.
    """

    def __init__(
        self,
        dataset: DataSet = "MNIST",
        batch_size: int = 128,
        data_dir: str = DEFAULT_FOLDER,
        split_seed: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of(get_args(DataSet), dataset=dataset)
        self.images: Images = {
            "MNIST": lambda: MNIST(data_dir, val_size=0),
            "FashionMNIST": lambda: FashionMNIST(data_dir, val_size=0),
            "Digits": lambda: Digits(val_size=0),
        }[dataset]()
        if not 1 <= batch_size <= self.images.train_size // 2:
            most = self.images.train_size // 2
            raise ValueError(f"batch_size must lie in [1, {most}], got {batch_size}")
        self.per_pass = self.images.train_size // 2 // batch_size
        self.batch_size, self.split_seed = batch_size, split_seed
        self._halves: dict[bool, tuple[Tensor, Tensor]] = {}

    def prepare_data(self) -> None:
        """Download the files that are missing."""
        self.images.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once."""
        images, labels = self.images.whole("train")
        order = np.arange(len(images))
        np.random.RandomState(self.split_seed).shuffle(order)
        half = len(images) // 2
        for training, chosen in ((True, order[:half]), (False, order[half:])):
            index = torch.from_numpy(chosen)
            self._halves[training] = (
                images[index].to(self.device),
                labels[index].to(self.device),
            )

    def mini_batches(  # noqa: D102
        self, seeds: np.ndarray, steps: np.ndarray, part: Part
    ) -> tuple[Tensor, Tensor]:
        images, labels = self._halves[part == "train"]
        b, places = self.batch_size, []
        for seed, step in zip(seeds.ravel(), steps.ravel(), strict=True):
            count, batch = divmod(int(step), self.per_pass)
            order = _order(int(seed), count, len(images))
            places.append(order[batch * b : (batch + 1) * b])
        index = torch.cat(places).to(images.device)
        chosen = images.index_select(0, index).to(torch.float32)
        chosen = chosen.div_(self.images.top).view(*seeds.shape, b, *images.shape[1:])
        return chosen, labels.index_select(0, index).view(*seeds.shape, b)


@lru_cache(maxsize=256)
def _order(seed: int, count: int, samples: int) -> Tensor:
    """Return the order of a run's pass through its half."""
    return torch.randperm(samples, generator=generator(seed, PASS_STREAM, count))
