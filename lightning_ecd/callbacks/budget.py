"""What a fit may cost, and what it has reached by then."""

import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ecd.checks import above, at_least
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import hyperparameters_of, traits_of


class Budget(Callback):
    """Ends a fit before it costs more evaluations of the gradient, or seconds.

    Optimizers that evaluate several times a step, and such that compute more between
    two evaluations, are compared over either. With every validation are logged
    ``budget/evaluations`` and ``budget/seconds`` of training so far: time in
    validations does not count. The fit ends with a validation.

    Args:
        evaluations: Of the loss with its gradient, none more; null: no limit.
        seconds: Of training, until the step at which they are over; null: no limit.
        every: Evaluations between two validations, about; null: as the Trainer says.
    """

    def __init__(
        self,
        evaluations: int | None = None,
        seconds: float | None = None,
        every: int | None = None,
    ):
        at_least(1, evaluations=evaluations, every=every)
        above(0, seconds=seconds)
        self.evaluations, self.seconds, self.every = evaluations, seconds, every
        self.spent = 0.0
        self._since: float | None = None  # the clock stands
        self._counted, self._a_step = 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; set the steps between validations.

        Raises:
            UserError: If the module counts nothing, or one step costs too much.
        """
        self._counted = getattr(pl_module, "evaluations", -1)
        if self._counted < 0:
            raise UserError("trainer.callbacks: Budget needs a modules.Task")
        optimizer = trainer.optimizers[0]
        traits = traits_of(type(optimizer))
        self._a_step = traits.count("evaluations", hyperparameters_of(optimizer))
        if self.evaluations is not None and self._a_step > self.evaluations:
            raise UserError(
                f"trainer.callbacks: Budget: evaluations must be at least "
                f"{self._a_step}, those of a step of {type(optimizer).__name__}, got "
                f"{self.evaluations}"
            )
        if self.every is not None:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_batch = max(1, round(self.every / max(1, self._a_step)))
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the fit if another step would cost more than the budget."""
        counted: int = pl_module.evaluations  # type: ignore[assignment]
        self._a_step = max(self._a_step, counted - self._counted)
        self._counted = counted
        late = self.seconds is not None and self._elapsed() >= self.seconds
        if self.seconds is not None and trainer.world_size > 1:  # clocks differ
            late = trainer.strategy.reduce_boolean_decision(late, all=False)
        limit = self.evaluations
        if late or (limit is not None and counted + self._a_step > limit):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log what has been spent."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            counted: int = pl_module.evaluations  # type: ignore[assignment]
            pl_module.log("budget/evaluations", float(counted))
            pl_module.log("budget/seconds", self.spent)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def _stop(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":  # its queue belongs to the training
            torch.cuda.synchronize(pl_module.device)
        self.spent, self._since = self._elapsed(), None

    def _elapsed(self) -> float:
        if self._since is None:
            return self.spent
        return self.spent + time.perf_counter() - self._since

    def state_dict(self) -> dict[str, Any]:
        """Return what has been spent."""
        return {"seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.spent = state_dict["seconds"]
