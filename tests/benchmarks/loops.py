"""Cost of Lightning's training loop beside a plain one, and of our batches."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from datamodules import MNIST
from lightning_ecd.callbacks import (
    Checkpoints,
    Diagnostics,
    TensorBoard,
    ThriftyProgressBar,
    WholeFiles,
)
from lightning_ecd.optimizers import BBI
from modules import Classifier, LeNet
from tests.benchmarks.timing import interleaved

#: Bars: batch size -> highest ratio of the loops, lowest of the loaders.
OVERHEAD_BARS = {50: 1.10, 128: 1.05}
LOADER_BAR = 60.0


def network() -> torch.nn.Module:
    """Return the network of the MNIST experiment, 201,528 parameters."""
    return LeNet(outputs=120)


def bbi(params: Any) -> BBI:
    """Return the optimizer of the MNIST experiment."""
    return BBI(params, lr=0.2, f_min=1e-6, extra_energy=1.0, bounce_every=100)


class _Alternate(Callback):
    """After each segment of Lightning's steps, times as many plain ones."""

    def __init__(self, data: MNIST, segment: int):
        self.segment = segment
        self.times: dict[str, list[float]] = {"lightning": [], "plain": []}
        self.model = network()
        self.optimizer = bbi(self.model.parameters())
        self.batches = self._batches(data)

    def _batches(self, data: MNIST) -> Iterator[Any]:
        loader = data.train_dataloader()
        while True:
            yield from loader

    def _plain_step(self) -> None:
        images, labels = next(self.batches)

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(images), labels)
            loss.backward()
            return loss

        self.optimizer.step(closure)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.segment:
            return
        now = time.perf_counter()
        self.times["lightning"].append(now - self.start)
        for _ in range(self.segment):
            self._plain_step()
        self.times["plain"].append(time.perf_counter() - now)
        self.start = time.perf_counter()


def overhead(batch_size: int, folder: Path, segments: int = 40) -> float:
    """Return the time of our LeNet step under Lightning over that of a plain loop.

    Standard logging: rich bar, TensorBoard and CSV, every 50 steps. Segments of 50
    steps alternate with plain ones; the first two are warm-up.
    """
    data = MNIST(batch_size=batch_size, val_size=0)
    data.prepare_data()
    data.setup("fit")
    alternate = _Alternate(data, segment=50)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=50 * segments,
        max_epochs=-1,
        log_every_n_steps=50,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=[
            TensorBoard(str(folder), "overhead", "0"),
            CSVLogger(str(folder), "overhead", "0"),
        ],
        plugins=[WholeFiles()],
        callbacks=[
            alternate,
            Checkpoints(every_n_steps=500),
            Diagnostics(),
            ThriftyProgressBar(),
        ],
    )
    trainer.fit(Classifier(network, bbi), datamodule=data)
    medians = {name: statistics.median(t[2:]) for name, t in alternate.times.items()}
    return medians["lightning"] / medians["plain"]


class _Pil(Dataset):
    """torchvision's MNIST item by item: a PIL image, then ToTensor."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels.tolist()
        self.transform = torchvision.transforms.ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image  # as torchvision.datasets.MNIST does it

        image = Image.fromarray(self.images[index].numpy(), mode=None)
        return self.transform(image), self.labels[index]


def loader_speedup(batch_size: int, batches: int = 40) -> float:
    """Return our batches per second over those of a PIL DataLoader, no workers."""
    data = MNIST(batch_size=batch_size, val_size=0)
    data.prepare_data()
    data.setup("fit")
    images, labels = data.whole("train")
    theirs = DataLoader(_Pil(images[:, 0], labels), batch_size, shuffle=True)

    def endless(loader: Any) -> Iterator[Any]:
        while True:
            yield from loader

    sources = {"ours": endless(data.train_dataloader()), "pil": endless(theirs)}
    runs = {
        name: (lambda source=source: [next(source) for _ in range(batches)])
        for name, source in sources.items()
    }
    times = interleaved(runs, rounds=9)
    return times["pil"] / times["ours"]
