"""Ends runs that do not learn."""

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from lightning_ecd.checks import at_least
from lightning_ecd.errors import UserError


class StopUntrained(Callback):
    """Ends a fit whose metric has not risen above a floor after some epochs.

    Args:
        metric: Logged by validations; higher is better.
        floor: At or below it, a run counts as untrained.
        epochs: That pass before anything is compared, >= 0.

    Reference:
        As in the code of F. Gressmann, Z. Eaton-Rosen, C. Luschi, "Improving neural
        network training in low dimensional random bases", NeurIPS 2020, arXiv
        2011.04720: accuracies up to 15 % after epoch 4 end a run.
    """

    def __init__(
        self, metric: str = "val/accuracy", floor: float = 0.15, epochs: int = 4
    ):
        at_least(0, epochs=epochs)
        self.metric, self.floor, self.epochs = metric, floor, epochs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and ask the trainer to stop."""
        if trainer.sanity_checking or trainer.current_epoch < self.epochs:
            return
        if self.metric not in trainer.callback_metrics:
            found = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(
                f"trainer.callbacks: StopUntrained needs the metric {self.metric}; "
                f"there are {found}"
            )
        value = float(trainer.callback_metrics[self.metric])
        if not value > self.floor:
            trainer.should_stop = True
            rank_zero_info(
                f"{self.metric} is {value:.4g}, not above {self.floor:g}, after epoch "
                f"{trainer.current_epoch + 1}: the fit ends"
            )
