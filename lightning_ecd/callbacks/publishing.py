"""Where a figure goes: the run's folder and TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger

if TYPE_CHECKING:  # matplotlib costs a second
    from matplotlib.figure import Figure


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of the logs, if there is one.

    Unlike `trainer.log_dir` it asks no other process, so that one alone may call it.
    """
    for logger in trainer.loggers[:1]:
        place = getattr(logger, "log_dir", None) or logger.save_dir
        return Path(place) if place else None
    return Path(trainer.default_root_dir)


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
    folder = folder or run_folder(trainer)
    if folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / file, dpi=120)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, trainer.global_step)
