"""Many optimizers on the same problems and the same mini-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from lightning_ecd.callbacks import publish
from lightning_ecd.callbacks.publishing import run_folder
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers import Descent, traits_of
from lightning_ecd.unrolling import FlatProblem, Problem, Window
from modules.curves import LossCurves, summary, write_curves

_SHOWN = ("loss", "final", "final_error", "final_10", "final_50", "final_90")


class Evaluation(LightningModule):
    """Lets optimizers descend on many problems at once, and compares them.

    Every optimizer meets the same problems, starting points and mini-batches
    (`datamodules.Streams`). A test writes into the run's folder ``losses.npz``: the
    losses before every update, an array (run, step, optimizer); ``summary.csv``: mean,
    standard error and quantiles of the last step, runs that diverged; ``losses.png``:
    the curves, with bands of two standard errors and medians; and the curves to
    TensorBoard. A fit trains nothing: it validates `optimizer` once per epoch, which
    is what a search for its learning rate needs.

    Metrics: ``val/loss``, the mean over runs and steps, ``val/final`` and so on are of
    `optimizer`; ``test/final/<name>`` and its standard error over the runs,
    ``test/final_error/<name>``, of all.

    Args:
        problem: Builds the problem; in a config its class_path and init_args.
        optimizer: The first of the optimizers, and the only one of a fit; any that
            treats the rows of a parameter apart, `Learned` too.
        others: More of them by the name they get in tables and figures.
        name: Of the first; None: its class.
        title: Of the figure.
    """

    metric_names = ("val/loss", "val/final", "test/loss", "test/final")

    def __init__(
        self,
        problem: Callable[[], Problem],
        optimizer: OptimizerCallable,
        others: dict[str, OptimizerCallable] | None = None,
        name: str | None = None,
        title: str = "",
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["problem", "optimizer", "others"])
        self.automatic_optimization = False
        self.problem = FlatProblem(problem())
        self.make_optimizer = optimizer
        probe = nn.Parameter(torch.zeros(1))
        first = name or type(optimizer([probe])).__name__
        if first in (others or {}):
            raise ValueError(f"others must not have the first one's name, {first!r}")
        self.makers = {first: optimizer, **(others or {})}
        self.title = title
        self.anchor = nn.Parameter(torch.zeros(()))  # device and dtype of the runs
        self._swarms: dict[str, Swarm] = {}
        self._curves: dict[str, LossCurves] = {}

    def configure_optimizers(self) -> Optimizer:
        """Return what Lightning asks for; no step is taken with it."""
        return torch.optim.SGD([self.anchor])

    def training_step(self, batch: Window, batch_idx: int) -> None:
        """Do nothing: optimizers are compared in validation and test."""

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        """Let the first optimizer go on."""
        self._advance(batch, list(self.makers)[:1])

    def test_step(self, batch: Window, batch_idx: int) -> None:
        """Let all optimizers go on."""
        self._advance(batch, list(self.makers))

    def on_validation_epoch_start(self) -> None:
        """Forget earlier runs."""
        self._swarms, self._curves = {}, {}

    def on_test_epoch_start(self) -> None:
        """Forget earlier runs."""
        self._swarms, self._curves = {}, {}

    def _advance(self, window: Window, names: list[str]) -> None:
        for name in names:
            curves = self._curves.setdefault(name, LossCurves())
            if window.step[0, 0] == 0:
                x = self.problem.starts(window.seed[0], self.anchor)
                self._swarms[name] = Swarm(self.makers[name], self.problem, x)
            swarm = self._swarms[name]
            losses = [swarm.step(window.batch_of(t)) for t in range(len(window.step))]
            curves.add(window, torch.stack(losses))

    def on_validation_epoch_end(self) -> None:
        """Log what became of the first optimizer's runs."""
        for curves in self._curves.values():
            for name, value in summary(curves.table()).items():
                self.log(f"val/{name}", float(value), prog_bar=name in _SHOWN[:2])

    def on_test_epoch_end(self) -> None:
        """Log, print, write and draw what became of all runs."""
        tables = {name: curves.table() for name, curves in self._curves.items()}
        rows = {name: summary(table) for name, table in tables.items()}
        for which, value in next(iter(rows.values())).items():
            self.log(f"test/{which}", float(value))
        for name, row in rows.items():
            for which in ("final", "final_error"):
                self.log(f"test/{which}/{name}", row[which])
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _print(rows, len(next(iter(tables.values()))[0]))
        folder = run_folder(self.trainer)
        if folder is None:
            return
        write_curves(folder, tables)
        self._to_tensorboard(tables, folder)
        from lightning_ecd.unrolling.figures import learning_curves

        figure = learning_curves(tables, self.title)
        publish(figure, self.trainer, "losses.png", "test/losses", folder)
        print(f"losses.npz, summary.csv, losses.png: {folder}")

    def _to_tensorboard(self, tables: dict[str, Tensor], folder: Path) -> None:
        """Write the mean curves, a scalar of every step."""
        loggers = [x for x in self.loggers if isinstance(x, TensorBoardLogger)]
        writer: Any = loggers[0].experiment if loggers else SummaryWriter(str(folder))
        for name, table in tables.items():
            for step, loss in enumerate(table.mean(1).tolist()):
                writer.add_scalar(f"curves/{name}", loss, step)
        writer.flush()
        if not loggers:
            writer.close()


class Swarm:
    """Runs of one optimizer on B problems at once: the rows of one parameter.

    Args:
        make: Builds the optimizer.
        problem: What every row descends on.
        starts: Where, shape (B, n).

    Raises:
        UserError: If the optimizer does not treat rows apart.
    """

    def __init__(self, make: OptimizerCallable, problem: FlatProblem, starts: Tensor):
        self.problem = problem
        # columns contiguous: numbers of a run are broadcast along them
        self.x = nn.Parameter(starts.T.contiguous().T)
        self.optimizer = make([self.x])
        name = type(self.optimizer).__name__
        if not traits_of(type(self.optimizer)).rows:
            raise UserError(
                f"{name} mixes the rows of a parameter, so that it cannot descend on "
                "many problems at once: `lightning-ecd optimizers --json` lists under "
                "rows those that can"
            )
        if isinstance(self.optimizer, Descent):
            self.optimizer.rows = len(starts)
            self.optimizer.row_layout = problem.layout

    def step(self, batch: Any) -> Tensor:
        """Take a step on mini-batches (B, ...); return the losses (B,) before it."""
        x = self.x.detach()
        losses, gradients = self.problem.losses_and_gradients(x, batch)
        self.x.grad = gradients.to(x)
        self.optimizer.step(lambda: losses)  # type: ignore[arg-type, return-value]
        return losses


def _print(rows: dict[str, dict[str, float]], runs: int) -> None:
    columns = [*_SHOWN, "diverged", "worse"]
    table = Table("optimizer", *columns, title=f"{runs} runs")
    for name, row in rows.items():
        table.add_row(name, *(f"{row[column]:.4g}" for column in columns))
    Console(width=110).print(table)
