"""Points at which a differential equation and its boundary values are imposed."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from datamodules.memory import ORDER_STREAM, DataModule, Loader
from lightning_ecd.checks import at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.randomness import generator, mixed

Shape = Literal["ball", "box"]
#: Interior (N, D) and boundary (M, D) points.
Points = tuple[Tensor, Tensor]

#: Beside those of datamodules.memory.
DRAW_STREAM, TEST_STREAM = 3, 4


def ball(draws: RandomState, interior: int, boundary: int, dimensions: int) -> Any:
    r"""Draw uniform points in the unit ball and on its sphere.

    A direction is that of normal numbers, a radius :math:`U^{1/D}` of a uniform one.
    The order of the draws is that of the reference code of BBI: for every interior
    point its D normals, then its uniform; then the boundary.

    Args:
        draws: The generator.
        interior: Number N of points in the ball.
        boundary: Number M of points on the sphere.
        dimensions: D; 2 is the disc.

    Returns:
        Arrays (N, D) and (M, D).
    """
    inner = np.empty((interior, dimensions))
    for point in inner:
        direction = draws.standard_normal(dimensions)
        radius = draws.random_sample() ** (1 / dimensions)
        point[:] = direction * (radius / np.linalg.norm(direction))
    sphere = draws.standard_normal((boundary, dimensions))
    return inner, sphere / np.linalg.norm(sphere, axis=1, keepdims=True)


def box(draws: RandomState, interior: int, boundary: int, dimensions: int) -> Any:
    """Draw uniform points in the box [-1, 1]^D and on its faces.

    Args:
        draws: The generator.
        interior: Number N of points in the box.
        boundary: Number M of points on its 2 D faces.
        dimensions: D.

    Returns:
        Arrays (N, D) and (M, D).
    """
    inner = draws.uniform(-1, 1, (interior, dimensions))
    faces = draws.uniform(-1, 1, (boundary, dimensions))
    axis = draws.randint(dimensions, size=boundary)
    faces[np.arange(boundary), axis] = draws.choice([-1.0, 1.0], boundary)
    return inner, faces


_SHAPES: dict[str, Callable[[RandomState, int, int, int], Any]] = {
    "ball": ball,
    "box": box,
}


class Collocation(DataModule):
    """Interior and boundary points; a batch is a pair (N, D), (M, D) of them.

    Points are functions of (seed, epoch). They stay the same during a run, or are
    drawn anew every few epochs. Validation goes over the training points, as the
    reference code of BBI does; test and prediction over as many fresh ones.

    Args:
        shape: "ball" of radius 1, in 2 dimensions the disc; or "box", [-1, 1]^D.
        dimensions: D, at least 1.
        interior: Number of points inside, at least 1.
        boundary: Number of points on the boundary, at least 1.
        batch_size: Interior points in a mini-batch of one rank, with their share of
            the boundary; null: all points in every batch.
        steps_per_epoch: Batches in an epoch; the points are gone through again and
            again, each time in a new order.
        redraw_every: Epochs after which all points are drawn anew; 0: never.
        seed: Of the points and their order; the first points in the ball are those
            of the reference code of BBI after ``numpy.random.seed(seed)``.
        minibatches: Mini-batches in a loader batch, which is that many times larger.

    Note:
        Points that do not fill the last mini-batch of a pass wait for another pass.
        The reference draws later points from a generator that runs on; here they
        depend on the number of the draw alone, so that a resumed run has them too.
    """

    def __init__(
        self,
        shape: Shape = "ball",
        dimensions: int = 2,
        interior: int = 10000,
        boundary: int = 1000,
        batch_size: int | None = None,
        steps_per_epoch: int = 1000,
        redraw_every: int = 0,
        seed: int = 42,
        minibatches: int = 1,
    ) -> None:
        super().__init__()
        one_of(_SHAPES, shape=shape)
        at_least(1, dimensions=dimensions, interior=interior, boundary=boundary)
        at_least(1, steps_per_epoch=steps_per_epoch, minibatches=minibatches)
        at_least(0, redraw_every=redraw_every)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {seed}")
        if batch_size is not None and not 1 <= batch_size <= interior:
            raise ValueError(
                f"batch_size must lie in [1, {interior}], got {batch_size}"
            )
        parts = -(-interior // (batch_size or interior))
        if boundary < parts:
            raise ValueError(
                f"boundary must be at least {parts}, the number of mini-batches that "
                f"batch_size ({batch_size}) makes, got {boundary}"
            )
        self.shape, self.dimensions = shape, dimensions
        self.interior, self.boundary = interior, boundary
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.redraw_every, self.seed = redraw_every, seed
        self.minibatches = minibatches
        self._kept: tuple[int, Points] | None = None
        # The number of mini-batches belongs to the model
        self.save_hyperparameters(ignore=["minibatches"])

    def points(self, epoch: int = 0) -> Points:
        """Return interior and boundary points of a training epoch."""
        draw = epoch // self.redraw_every if self.redraw_every else 0
        return self._drawn(mixed(self.seed, DRAW_STREAM, draw) if draw else self.seed)

    def test_points(self, epoch: int = 0) -> Points:
        """Return points that no training epoch has."""
        return self._drawn(mixed(self.seed, TEST_STREAM))

    def train_dataloader(self) -> Loader:
        """Return the loader of the training batches."""
        return self._loader(
            self.points,
            batches=self.steps_per_epoch,
            minibatches=self.minibatches,
            shuffled=self.batch_size is not None and not self.overfits,
        )

    def val_dataloader(self) -> Loader:
        """Return the loader of the training points, each once."""
        return self._loader(self.points)

    def test_dataloader(self) -> Loader:
        """Return the loader of fresh points, each once."""
        return self._loader(self.test_points)

    def predict_dataloader(self) -> Loader:
        """Return the loader of fresh points, in order."""
        return self._loader(self.test_points)

    def _loader(self, points: Callable[[int], Points], **settings: Any) -> Loader:
        world_size = self.world_size
        parts = -(-self.interior // ((self.batch_size or self.interior) * world_size))
        if min(self.interior, self.boundary) < parts * world_size:
            raise UserError(
                f"data.boundary: {self.boundary} points do not fill {parts} "
                f"mini-batches on {world_size} processes: enlarge it"
            )
        return PointLoader(
            points,
            parts,
            seed=self.seed,
            rank=self.rank,
            world_size=world_size,
            **settings,
        )

    def _drawn(self, seed: int) -> Points:
        """Return the points of a seed, on the device and in the trainer's precision."""
        if self._kept is None or self._kept[0] != seed:
            draws = RandomState(seed % 2**32)
            counts = self.interior, self.boundary, self.dimensions
            double = getattr(self.trainer, "precision", "") == "64-true"
            dtype = torch.float64 if double else torch.float32
            inner, outer = (
                torch.from_numpy(array).to(self.device, dtype)
                for array in _SHAPES[self.shape](draws, *counts)
            )
            self._kept = seed, (inner, outer)
        return self._kept[1]


class PointLoader(Loader):
    """Goes through interior and boundary points again and again, part by part.

    Every pass cuts the points of an epoch, in a new order, into `parts` mini-batches
    whose sizes differ by at most one, and these among the ranks.

    Args:
        points: Points of an epoch.
        parts: Mini-batches in a pass, at least 1.
        batches: Loader batches in an epoch; None: one pass.
        minibatches: Mini-batches in a loader batch.
        shuffled: Whether the order of every pass is drawn.
        seed: Of the order.
        rank: This process.
        world_size: The number of processes.
    """

    def __init__(
        self,
        points: Callable[[int], Points],
        parts: int,
        *,
        batches: int | None = None,
        minibatches: int = 1,
        shuffled: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # To the base class the data are the numbers of an epoch's batches.
        numbers = torch.arange(batches or parts)
        super().__init__((numbers,), batch_size=1, order="sequential", seed=seed)
        self.points, self.parts, self.shuffled = points, parts, shuffled
        self.chunks, self.shares = minibatches, (rank, world_size)
        self._orders: dict[int, tuple[tuple[int, int], Tensor]] = {}

    @property
    def samples(self) -> int:
        """Number of interior points that an epoch draws from."""
        return len(self.points(self.epoch)[0])

    def _batch(self, order: Tensor, batch: int) -> tuple[Tensor, ...]:
        numbers = range(batch * self.chunks, (batch + 1) * self.chunks)
        return tuple(
            torch.cat([self._chunk(kind, points, number) for number in numbers])
            if self.chunks > 1
            else self._chunk(kind, points, batch)
            for kind, points in enumerate(self.points(self.epoch))
        )

    def _chunk(self, kind: int, points: Tensor, number: int) -> Tensor:
        """Return this rank's points of the epoch's mini-batch of that number."""
        rank, world_size = self.shares
        count, part = divmod(number, self.parts)
        share, shares = part * world_size + rank, self.parts * world_size
        span = slice(share * len(points) // shares, (share + 1) * len(points) // shares)
        if not self.shuffled:
            return points[span]
        return points.index_select(0, self._order(kind, points, count)[span])

    def _order(self, kind: int, points: Tensor, count: int) -> Tensor:
        """Return the order of a pass, kept until the next one."""
        now = self.epoch, count
        kept = self._orders.get(kind)
        if kept is None or kept[0] != now:
            draws = generator(self.seed, ORDER_STREAM, *now, kind)
            order = torch.randperm(len(points), generator=draws).to(points.device)
            kept = self._orders[kind] = (now, order)
        return kept[1]
