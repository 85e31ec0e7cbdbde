"""Where a figure goes: the run's folder and TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

if TYPE_CHECKING:  # matplotlib costs a second
    from matplotlib.figure import Figure


def publish(
    figure: "Figure", trainer: Trainer, file: str, tag: str, folder: Path | None = None
) -> None:
    """Write a figure into the run's folder, and to TensorBoard at the present step.

    Args:
        figure: What to show.
        trainer: Of the run; a fast_dev_run leaves no file.
        file: Name of the picture.
        tag: Its name in TensorBoard.
        folder: Where the file goes; default: the folder of the logs, if there is one.
    """
    if folder is None and trainer.log_dir:
        folder = Path(trainer.log_dir)
    if folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / file, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step)
