"""What an optimizer reports about itself, in the logs."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lightning_ecd.callbacks.hparams import TensorBoard
from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.checks import at_least


class Diagnostics(Callback):
    """Logs `optimizer.info` on logging steps, and a phase-space figure per run.

    Scalars are named ``optimizer/energy`` and so on; vectors become histograms. What
    an optimizer says about its layout (`describe`) is shown at the start. An
    optimizer that reports a potential ``V`` and a ``momentum`` gets a figure of its
    way through phase space, in TensorBoard and as ``phase_space.png`` in the run's
    folder.

    Args:
        points: The most points that the figure keeps.
        figure: Whether to draw it.
    """

    def __init__(self, points: int = 2000, figure: bool = True):
        at_least(2, points=points)
        self.points, self.figure = points, figure
        self._path: dict[str, list[float]] = {"step": [], "V": [], "momentum": []}
        self._seen, self._every, self._last = 0, 1, 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the hyper-parameter tab which metrics the task has."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.metric_names = getattr(pl_module, "metric_names", ())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how an optimizer divides the parameters, where it does."""
        describe = getattr(trainer.optimizers[0], "describe", None)
        if describe is None:
            return
        text = describe()
        rank_zero_info(text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.experiment.add_text("optimizer/layout", f"```\n{text}\n```")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the optimizer's diagnostics when the logger is due."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every or step == self._last:  # accumulating: no step
            return
        self._last = step
        info = getattr(trainer.optimizers[0], "info", None)
        if not info:
            return
        vectors = {k: v for k, v in info.items() if isinstance(v, Tensor) and v.dim()}
        values = {k: float(v) for k, v in info.items() if k not in vectors}
        pl_module.log_dict({f"optimizer/{k}": v for k, v in values.items()})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard):
                for k, v in vectors.items():
                    logger.experiment.add_histogram(f"optimizer/{k}", v, step)
        if self.figure and "V" in values and "momentum" in values:
            self._remember({"step": float(step), **values})

    def _remember(self, values: dict[str, float]) -> None:
        path = self._path
        self._seen += 1
        if self._seen % self._every:
            return
        for name, column in path.items():
            column.append(values[name])
        if len(path["step"]) > self.points:  # keep every other point from now on
            for name in path:
                path[name] = path[name][1::2]
            self._every *= 2

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the way through phase space."""
        if not self._path["step"] or not trainer.is_global_zero:
            return
        from lightning_ecd.figures import phase_space  # matplotlib costs a second

        figure = phase_space(**self._path)
        publish(figure, trainer, "phase_space.png", "optimizer/phase_space")

    def state_dict(self) -> dict[str, Any]:
        """Return the points kept so far."""
        return {"path": self._path, "seen": self._seen, "every": self._every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the points kept so far."""
        self._path = state_dict["path"]
        self._seen, self._every = state_dict["seen"], state_dict["every"]
