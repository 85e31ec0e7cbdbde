"""The way of a point on a function, in pictures."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from lightning_ecd.callbacks.publishing import run_folder
from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError
from lightning_ecd.functions import Function

_SHARE = 0.05  # of the training time may be spent on pictures before its end


class Surface(Callback):
    """Draws the way of the point that a task moves on a function.

    Whatever the dimension, the loss, the best so far and the distance to the minimum
    (``curves.png``, in TensorBoard ``function/curves``); for two variables also the
    way on the contours and on the surface (``surface.png``, ``function/surface``).
    Drawn at the end of the training, and of epochs as long as that costs at most
    a twentieth of the time.

    Args:
        points: The most points of the way that are kept; a longer one is thinned out.
    """

    def __init__(self, points: int = 2000):
        at_least(2, points=points)
        self.points = points
        self._steps: list[int] = []
        self._way: list[list[float]] = []
        self._every = 1
        self._drawn, self._cost = 0.0, 1.0  # seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a task without a function."""
        if not isinstance(getattr(pl_module, "function", None), Function):
            raise UserError(
                "trainer.callbacks: Surface draws functions, "
                f"{type(pl_module).__name__} has none: leave the callback out, or use "
                "modules.FunctionTask"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the starting point."""
        self._drawn = time.monotonic()
        if not self._steps:
            self._remember(trainer.global_step, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep the point if its turn has come."""
        step = trainer.global_step
        if step % self._every == 0 and step != self._steps[-1]:
            self._remember(step, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the way so far if enough time has passed."""
        if _SHARE * (time.monotonic() - self._drawn) > self._cost:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the whole way, up to the last point."""
        if trainer.global_step != self._steps[-1]:
            self._remember(trainer.global_step, pl_module)
        self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the points kept so far."""
        way = torch.tensor(self._way, dtype=torch.float64)
        return {"steps": self._steps, "way": way, "every": self._every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the points kept so far."""
        self._steps, self._every = state_dict["steps"], state_dict["every"]
        self._way = state_dict["way"].tolist()

    def _remember(self, step: int, pl_module: Any) -> None:
        self._steps.append(step)
        self._way.append(pl_module.x.tolist())
        if len(self._steps) > self.points:  # keep every other point from now on
            self._every *= 2
            kept = [i for i, s in enumerate(self._steps) if s % self._every == 0]
            self._steps = [self._steps[i] for i in kept]
            self._way = [self._way[i] for i in kept]

    def _draw(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from matplotlib.image import imsave

        from lightning_ecd.figures import pixels  # matplotlib costs a second

        begin, step = time.monotonic(), trainer.global_step
        name, folder = type(trainer.optimizers[0]).__name__, run_folder(trainer)
        for kind, figure in self._figures(pl_module.function, name):
            picture = pixels(figure)
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                imsave(folder / f"{kind}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        f"function/{kind}", picture, step, dataformats="HWC"
                    )
        self._drawn = time.monotonic()
        self._cost = self._drawn - begin

    def _figures(self, function: Function, name: str) -> Iterator[tuple[str, Any]]:
        from lightning_ecd import figures

        way: Tensor = torch.tensor(self._way, dtype=torch.float64)
        losses = {name: (self._steps, function(way).tolist())}
        distances = None
        if function.minimizers:
            distances = {name: (self._steps, function.distance(way).tolist())}
        yield "curves", figures.curves(losses, distances)
        if function.dimension == 2:
            yield "surface", figures.surface(function, {name: way.numpy()})
