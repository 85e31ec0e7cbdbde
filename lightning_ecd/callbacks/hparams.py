"""A TensorBoard logger whose hyper-parameter tab shows the run's real metrics."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams as hparams_summary


class TensorBoard(TensorBoardLogger):
    """TensorBoard, with metrics in the hyper-parameter tab.

    The tab shows only metrics that a run's first record declares, each with the last
    scalar of that name; Lightning declares a metric of its own that nobody logs.

    Args:
        save_dir: Folder of the logs.
        name: Name of the experiment.
        version: Name of the run.

    Attributes:
        metric_names: What the tab shows; set before the fit starts.
    """

    metric_names: tuple[str, ...] = ()

    def __init__(self, save_dir: str, name: str, version: str):
        super().__init__(save_dir, name=name, version=version, default_hp_metric=False)

    @rank_zero_only
    def log_hyperparams(
        self, params: Any, metrics: Any = None, step: int | None = None
    ) -> None:
        """Declare settings and metrics, once."""
        if self.hparams or not params:
            return
        self.hparams.update(params)
        records = hparams_summary(
            flattened(params), dict.fromkeys(self.metric_names, 0.0)
        )
        writer = self.experiment._get_file_writer()
        for record in records:
            writer.add_summary(record)


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level of short names.

    Args:
        params: Settings; a mapping with class_path and init_args counts as the
            class's name and its arguments.
        prefix: Put before every name.

    Example:
        >>> optimizer = {"class_path": "a.b.BBI", "init_args": {"lr": 0.2}}
        >>> flattened({"optimizer": optimizer, "groups": None})
        {'optimizer': 'BBI', 'optimizer/lr': 0.2, 'groups': 'None'}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if key.startswith("_"):
            continue
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            flat[name] = value["class_path"].rsplit(".", 1)[-1]
            flat |= flattened(value.get("init_args") or {}, f"{name}/")
        elif isinstance(value, Mapping):
            flat |= flattened(value, f"{name}/")
        elif isinstance(value, bool | int | float | str):
            flat[name] = value
        else:
            flat[name] = str(value)
    return flat
