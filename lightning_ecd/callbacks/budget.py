"""What a fit may cost, and what it has reached by then."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_ecd.checks import above, at_least
from lightning_ecd.optimizers import hyperparameters_of, traits_of


class Budget(Callback):
    """Ends a fit after so many evaluations of the gradient, or seconds.

    Optimizers that evaluate several times a step, and such that compute more between
    two evaluations, are compared over either. With every validation are logged
    ``budget/evaluations`` and ``budget/seconds`` of training so far: time in
    validations does not count. The fit ends with a validation.

    Args:
        evaluations: Of the loss with its gradient; null: no limit.
        seconds: Of training; null: no limit.
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; set the steps between validations."""
        if self.every is not None:
            optimizer = trainer.optimizers[0]
            traits = traits_of(type(optimizer))
            a_step = traits.count("evaluations", hyperparameters_of(optimizer))
            trainer.check_val_every_n_epoch = None
            trainer.val_check_batch = max(1, round(self.every / max(1, a_step)))
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End the fit if the budget is spent."""
        counted, limit = getattr(pl_module, "evaluations", 0), self.evaluations
        late = self.seconds is not None and self._elapsed() >= self.seconds
        if late or (limit is not None and counted >= limit):
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.spent, self._since = self._elapsed(), None

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Log what has been spent."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            counted = float(getattr(pl_module, "evaluations", 0))
            pl_module.log("budget/evaluations", counted)
            pl_module.log("budget/seconds", self.spent)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
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
