"""The training of an update rule: its weights are what is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, distributed

from lightning_ecd.checks import above, at_least, one_of
from lightning_ecd.errors import UserError
from lightning_ecd.optimizers.ranks import ranks
from lightning_ecd.randomness import generator
from lightning_ecd.rules import UpdateRule
from lightning_ecd.rules.files import KEY, packed
from lightning_ecd.unrolling import (
    Evolution,
    EvolutionEstimator,
    FlatProblem,
    Problem,
    Runs,
    Window,
    evolution_gradient,
    truncated_gradient,
    unroll,
)
from lightning_ecd.unrolling.rescaling import Rescale, rescaling
from modules.curves import LossCurves, summary
from modules.task import LRSchedulerFactory, Task

Estimator = Literal["tbptt", EvolutionEstimator]

_NOISE_STREAM = 30


class MetaTask(Task):
    r"""Trains a learned update rule on runs of a problem, window by window.

    .. math::
        L(\varphi) = E \frac1W \sum_t f(\theta_t), \qquad
        \theta_{t+1} = \theta_t + \Delta t\, u_t(\varphi)

    A batch is one window of W steps of many runs (`datamodules.Streams`); parameters
    and states of the runs are carried over, detached, to the next window, once for
    every step of the optimizer. The parameters of the module are the rule's weights:
    any optimizer of the registry can train them, with clipping, schedules, several
    processes. Checkpoints hold the runs, so that a resumed one continues to the bit,
    and the rule, which `Learned` reads.

    Metrics: ``train/loss`` is the mean loss within the window. ``val/loss``, which
    selects the best weights, is the mean over runs and steps, ``val/final`` the mean
    of the last step, ``val/final_50`` its median, ``val/diverged`` the number of runs
    whose last loss is above ten times their first, ``val/worse`` above the first.

    Args:
        rule: Builds the rule; in a config its class_path and init_args.
        problem: Builds the problem, likewise.
        optimizer: Of the rule's weights; see `Task`.
        lr: Factor of the rule's updates, > 0, the paper's out_mul.
        estimator: Of the gradient: "tbptt" differentiates through the window; "es",
            "pes" and "nres" perturb the weights.
        score_last: See `truncated_gradient`; False as published.
        second_order: See `truncated_gradient`.
        recompute: See `truncated_gradient`.
        std: Of the perturbations, > 0.
        worst: Losses above, or not finite, count as this in es, pes and nres.
        inclusive: See `evolution_gradient`.
        rescale: Every run has its own units: "none", or one factor for all "global",
            for each "tensor", for each "parameter".
        rescale_by: The factors lie between 1 / rescale_by and this, log-uniformly.
        seed: Of the perturbations.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`.

    Note:
        The released code takes the sum over the window and one run at a time, counts
        W - 1 updates of W (`score_last`), cuts the features of the state from the
        graph (`HNNRule.state_grad`) and does not clip.

    Reference:
        M. Andrychowicz et al., arXiv 1606.04474; A. Timofeev, A. Afonin, Y. Liu,
        arXiv 2111.00565.
    """

    metric_names = (
        "val/loss",
        "val/final",
        "val/diverged",
        "test/loss",
        "test/final",
        "test/diverged",
    )

    def __init__(
        self,
        rule: Callable[[], UpdateRule],
        problem: Callable[[], Problem],
        optimizer: OptimizerCallable,
        lr: float = 1.0,
        estimator: Estimator = "tbptt",
        score_last: bool = True,
        second_order: bool = False,
        recompute: bool = False,
        std: float = 0.01,
        worst: float = 20.0,
        inclusive: bool = False,
        rescale: Rescale = "none",
        rescale_by: float = 1e3,
        seed: int = 0,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        super().__init__(optimizer, 1, scheduler, scheduler_interval, groups)
        above(0, lr=lr, std=std)
        at_least(1, rescale_by=rescale_by)
        one_of(get_args(Estimator), estimator=estimator)
        one_of(get_args(Rescale), rescale=rescale)
        self.rule = rule()
        self.problem = FlatProblem(problem())
        self.lr, self.estimator = lr, estimator
        self.truncation: dict[str, Any] = {
            "score_last": score_last,
            "second_order": second_order,
            "recompute": recompute,
        }
        self.evolution: dict[str, Any] = {
            "std": std,
            "worst": worst,
            "inclusive": inclusive,
        }
        self.scales = rescaling(
            rescale, self.problem.layout, 1 / rescale_by, rescale_by
        )
        self.seed = seed
        self._here = _Place()  # where the last window ended
        self._next: _Place | None = None  # where the present one does
        self._saved: list[Any] = []  # of a checkpoint, by process
        self._dropped: Tensor | int = 0
        self._evaluated: Runs | None = None
        self.curves = LossCurves()

    @property
    def like(self) -> Tensor:
        """A weight of the rule, whose device and dtype the runs have."""
        return next(self.rule.parameters())

    def batch_size(self, batch: Window) -> int:
        """Return the number of runs."""
        return batch.step.shape[1]

    def configure_optimizers(self) -> Any:
        """Refuse an optimizer that evaluates at points of its own."""
        configured = super().configure_optimizers()
        optimizer = configured
        if isinstance(configured, dict):
            optimizer = configured["optimizer"]
        if getattr(optimizer, "uses_values", False):
            raise UserError(
                f"{type(optimizer).__name__} evaluates the loss at points of its own, "
                "which meta-training cannot: set model.estimator=es for evolution "
                "strategies, and another model.optimizer"
            )
        return configured

    def loss(self, batch: Window) -> Tensor:
        """Return the mean loss of a window; its gradient is the estimator's."""
        if self._evaluation == 0:  # later ones may be at other weights
            self._continue()
            self._here.require(batch)
        losses, gradients, after = self._estimate(batch)
        if self._evaluation == 0:
            self._next = _Place(after, batch.step[-1] + 1, batch.seed[-1])
            self._next.step[batch.last[-1]] = 0  # type: ignore[index]
        finite = torch.isfinite(losses).all(0)  # the others count for nothing
        total = torch.where(finite, losses.mean(0), 0.0).sum()
        weights = [w for w in self.rule.parameters() if w.requires_grad]
        value = total / finite.sum()
        return _WithGradients.apply(value, gradients, *weights)  # type: ignore[no-any-return]

    def _estimate(
        self, window: Window
    ) -> tuple[Tensor, list[Tensor], Runs | Evolution]:
        where = (self.rule, self.problem, window)
        how = (self.lr, self.like)
        before = self._here.runs
        if self.estimator == "tbptt":
            assert not isinstance(before, Evolution)
            found = truncated_gradient(
                *where, before, *how, scales=self.scales, **self.truncation
            )
            self._dropped = found.dropped
            return found.losses, found.gradients, found.after
        assert not isinstance(before, Runs)
        evolved = evolution_gradient(
            self.estimator,
            *where,
            before,
            *how,
            self._noise(window),
            scales=self.scales,
            **self.evolution,
        )
        return evolved.losses, evolved.gradients, evolved.after

    def _log_epochs(self) -> None:
        """Log the runs that counted for nothing; windows have no passes over data."""
        self.log("train/dropped", torch.as_tensor(self._dropped, dtype=torch.float))

    def _noise(self, window: Window) -> Tensor:
        """Return standard normal numbers (B, P), a function of runs and steps."""
        P = sum(w.numel() for w in self.rule.parameters() if w.requires_grad)
        rows = []
        for run, step in zip(window.seed[0], window.step[0], strict=True):
            draws = generator(self.seed, _NOISE_STREAM, int(run), int(step))
            rows.append(torch.randn(P, generator=draws))
        return torch.stack(rows)

    def _continue(self) -> None:
        """Start where the last window ended."""
        if self._next is not None:
            self._here, self._next = self._next, None

    # -- evaluation ----------------------------------------------------------------

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        """Let the runs of a validation go on."""
        self._evaluate(batch)

    def test_step(self, batch: Window, batch_idx: int) -> None:
        """Let the runs of a test go on."""
        self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        """Forget earlier runs."""
        self._evaluated, self.curves = None, LossCurves()

    def on_test_epoch_start(self) -> None:
        """Forget earlier runs."""
        self._evaluated, self.curves = None, LossCurves()

    def on_validation_epoch_end(self) -> None:
        """Log what became of the runs."""
        self._log_summary("val")

    def on_test_epoch_end(self) -> None:
        """Log what became of the runs."""
        self._log_summary("test")

    def _evaluate(self, window: Window) -> None:
        losses = []
        with torch.no_grad():
            for found, runs in unroll(
                self.rule, self.problem, window, self._evaluated, self.lr, self.like
            ):
                losses.append(found)
                self._evaluated = runs
        self.curves.add(window, torch.stack(losses))

    def _log_summary(self, stage: str) -> None:
        shown = ("loss", "final")
        for name, value in summary(self.curves.table()).items():
            self.log(f"{stage}/{name}", float(value), prog_bar=name in shown)

    # -- checkpoints ---------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rule, for `Learned`, and where the runs of all processes are."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = packed(self.rule, self.lr)
        # the callbacks that save run before the next batch begins
        place = (self._next or self._here).plain()
        everywhere: list[Any] = [place]
        if ranks() > 1:
            everywhere = [None] * ranks()
            distributed.all_gather_object(everywhere, place)
        checkpoint["runs"] = everywhere

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember where the runs were."""
        super().on_load_checkpoint(checkpoint)
        self._saved = checkpoint.get("runs", [])

    def on_train_start(self) -> None:
        """Let the runs of a checkpoint go on: the module is on its device now."""
        saved, self._saved = self._saved, []
        if not saved:
            return
        if len(saved) != self.trainer.world_size:
            raise UserError(
                f"the checkpoint is of {len(saved)} processes, this run has "
                f"{self.trainer.world_size}: set trainer.devices={len(saved)}"
            )
        self._here = _Place.restored(saved[self.global_rank], self.like)
        self._next = None


@dataclass
class _Place:
    """Where runs are between two windows.

    Attributes:
        runs: Their parameters and states; None: nowhere yet.
        step: Numbers of the next steps within the runs, shape (B,).
        seed: Of the runs, shape (B,).
    """

    runs: Runs | Evolution | None = None
    step: np.ndarray | None = None
    seed: np.ndarray | None = None

    def require(self, window: Window) -> None:
        """Raise unless a window goes on where the last one ended, or begins."""
        first = window.step[0]
        known = np.zeros_like(first, dtype=bool)
        if self.step is not None and len(self.step) == len(first):
            known = (self.step == first) & (self.seed == window.seed[0])
        if not (known | (first == 0)).all():
            raise UserError(
                "a window is in the middle of runs that training has not begun: with "
                "data.stagger leave trainer.limit_train_batches at 1.0, and resume "
                "with the same data settings"
            )

    def plain(self) -> dict[str, Any]:
        """Return the place as plain data on the CPU."""
        runs, noise = self.runs, None
        if isinstance(runs, Evolution):
            runs, noise = runs
        return {
            "step": None if self.step is None else torch.from_numpy(self.step),
            "seed": None if self.seed is None else torch.from_numpy(self.seed.copy()),
            "noise": None if noise is None else noise.cpu(),
            "runs": None if runs is None else runs.to(torch.device("cpu")).tensors(),
        }

    @classmethod
    def restored(cls, saved: dict[str, Any], like: Tensor) -> "_Place":
        """Return what `plain` returned, on the device of `like`."""
        if saved["runs"] is None:
            return cls()
        runs: Runs | Evolution = Runs(**saved["runs"]).to(like.device)
        if saved["noise"] is not None:
            runs = Evolution(runs, saved["noise"].to(like.device))  # type: ignore[arg-type]
        return cls(runs, saved["step"].numpy(), saved["seed"].numpy())


class _WithGradients(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, value: Tensor, gradients: list[Tensor], *weights: Tensor
    ) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:  # noqa: D102
        return None, None, *(outputs[0] * gradient for gradient in ctx.gradients)
