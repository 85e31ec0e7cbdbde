"""The theory's curves beside a run of SGD."""

import json
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ecd.callbacks.least_squares import (
    kernel_of,
    plain_sgd,
    require_independent,
    require_regression,
    total_steps,
    training_samples,
    whole_loss,
)
from lightning_ecd.callbacks.publishing import publish, run_folder
from lightning_ecd.checks import above, at_least
from lightning_ecd.errors import UserError
from lightning_ecd.theory import (
    Companions,
    Constant,
    MiniBatchSGD,
    Rates,
    Schedule,
    alpha_crit,
    lambda_crit,
    log_spaced,
    noise_strength,
    total_noise,
)

_WHO = "trainer.callbacks: Regimes"


class Regimes(Callback):
    r"""Computes the linearised, averaged and diagonal regimes of a run of SGD.

    At the start of a fit of `modules.Regression` the network's tangent kernel and
    output error on the training samples are computed, and the regimes begin there with
    the run's own mini-batches. On some steps, equally spaced in their logarithm, the
    losses of all, and the network's own on the whole training set, are logged as
    ``regimes/network``, ``regimes/linearized``, ``regimes/averaged``,
    ``regimes/tau_1`` ...; the figure ``regimes.png`` and the arrays ``regimes.pt`` go
    into the run's folder, the spectrum's numbers into ``theory.json``.

    Args:
        normalize_lr: Multiply the optimizer's lr by :math:`N/\lambda_{max}(K)`, so
            that it is α of the theory. False: the regimes get α = lr
            :math:`\lambda_{max}/N`.
        rates: What becomes of lr and momentum over the steps: `Constant`, `Power`,
            `Jacobi` of `lightning_ecd.theory`, or any function of (steps, lr,
            momentum) that returns two arrays. The run follows it.
        runs: Of the linearised regime; the first has the run's mini-batches, the
            others those of the seeds that follow.
        rank: Of the averaged regime; None: exact; 0: without it.
        taus: Of the diagonal regime.
        points: Steps with values, about.
        track: Keep every mode's second moment at these steps, too, as
            ``modes/linearized``, ``modes/averaged``, ``modes/tau_1`` ... of
            ``regimes.pt``, (steps, N), and log ``regimes/error_tau_1`` ...:
            :math:`\sum_k |C_k - E[(u_k \cdot d)^2]| / \sum_k E[(u_k \cdot d)^2]`,
            what the diagonal regime is wrong by, beside the averaged one.
        memory: GiB that matrices of samples x samples may take.
    """

    def __init__(
        self,
        normalize_lr: bool = True,
        rates: Rates | None = None,
        runs: int = 1,
        rank: int | None = 100,
        taus: list[float] | None = None,
        points: int = 100,
        track: bool = False,
        memory: float = 4.0,
    ):
        at_least(0, runs=runs, rank=rank)
        at_least(2, points=points)
        above(0, memory=memory)
        self.normalize_lr, self.rates = normalize_lr, rates or Constant()
        self.runs, self.rank, self.points = runs, rank, points
        self.taus, self.memory = [1.0, -1.0] if taus is None else taus, memory
        self.track = track
        self.curves: dict[str, list[Any]] = {}
        self.modes: dict[str, list[Tensor]] = {}
        self._saved: dict[str, Any] = {}
        self._start: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what the theory does not speak of."""
        if stage != "fit":
            return
        require_regression(pl_module, _WHO)
        require_independent(trainer, getattr(trainer, "datamodule", None), _WHO)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the kernel, and where everything begins."""
        group = plain_sgd(trainer, _WHO)
        loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        X, y = (tensor.to(pl_module.dtype) for tensor in training_samples(loader))
        self.X, self.y = X, y
        if trainer.ckpt_path is not None and not self._saved:
            raise UserError(
                f"{_WHO}: {trainer.ckpt_path} is of a run without it, and the regimes "
                "begin where training does: resume without it, or start a new run"
            )
        Companions.require_room(len(y), self.rank, self.memory * 2**30)
        start = deepcopy(pl_module, {id(trainer): trainer})  # of the network alone
        if self._saved:
            start.load_state_dict(self._saved["network"])
        self._start = {k: v.cpu().clone() for k, v in start.state_dict().items()}
        K, d = kernel_of(start, X, y)
        steps = total_steps(trainer, _WHO)
        self.companions = Companions(K, d, self.rank, self.taus, self.memory * 2**30)
        self.scale = self.companions.spectrum.scale
        rate = group["lr"] * (1.0 if self.normalize_lr else self.scale)
        alpha, beta = self.rates(steps, rate, group.get("momentum", 0.0))
        batch = torch.full((steps,), loader._full)
        self.schedule = Schedule(alpha.double(), beta.double(), batch)
        self._moves = bool(beta.any())
        self.companions.begin(self.schedule, _Draws(loader, self.runs), self.runs)
        self.at = {0, *log_spaced(steps, self.points)}
        if self._saved:
            self._go_on(self._saved)
            self._saved = {}
        self._describe(trainer, loader._full)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the losses before the first step."""
        if trainer.global_step == 0:
            self._log(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of the step to come."""
        step = trainer.global_step
        alpha, beta = self.schedule.alpha, self.schedule.beta
        momentum = beta[step].item()
        if step:  # the optimizer's velocity is ours over -α of its own step
            momentum *= (alpha[step - 1] / alpha[step]).item()
        if momentum == 0 and self._moves:
            momentum = 1e-30  # at 0 the optimizer would forget to keep the gradient
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = alpha[step].item() / self.scale
            if "momentum" in group:
                group["momentum"] = momentum

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the losses where it is due."""
        if trainer.global_step in self.at:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves; write them."""
        folder = run_folder(trainer)
        quick = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not trainer.is_global_zero or not self.curves.get("step"):
            return
        from lightning_ecd.theory.figures import as_curve, regimes  # matplotlib: 1 s

        steps = self.curves["step"]
        shown = {
            name: as_curve(steps, values)
            for name, values in self.curves.items()
            if name != "step"
        }
        publish(
            regimes(shown, self.companions.spectrum),
            trainer,
            "regimes.png",
            "regimes/losses",
        )
        if folder is not None and not quick:
            arrays = {name: torch.tensor(v) for name, v in self.curves.items()}
            arrays |= {
                f"modes/{name}": torch.stack(rows) for name, rows in self.modes.items()
            }
            spectrum = self.companions.spectrum
            arrays["eigenvalues"] = spectrum.eigenvalues.cpu()
            arrays["coefficients"] = spectrum.coefficients.cpu()
            torch.save(arrays, folder / "regimes.pt")

    def state_dict(self) -> dict[str, Any]:
        """Return curves, states, and the weights that the kernel is of."""
        if not self._start:
            return {}
        return {
            "curves": deepcopy(self.curves),
            "modes": {name: list(rows) for name, rows in self.modes.items()},
            "companions": self.companions.state_dict(),
            "network": self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them in the next fit."""
        self._saved = state_dict

    def _go_on(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint holds, if it is of these settings."""
        curves = {"step", "network", *self.companions.losses()}
        modes = {*self.companions.diagonals()} if self.track else set()
        try:
            same = set(saved["curves"]) == curves and set(saved["modes"]) == modes
            self.companions.load_state_dict(saved["companions"])
        except (KeyError, ValueError):
            same = False
        if not same:
            raise UserError(
                f"{_WHO}: the checkpoint's regimes are of other settings, or of an "
                "older version: set runs, rank, taus and track back, or start a new run"
            )
        self.curves, self.modes = saved["curves"], saved["modes"]

    def _log(self, trainer: Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        losses: dict[str, Any] = {"network": whole_loss(pl_module, self.X, self.y)}
        losses |= self.companions.advance(step)
        self.curves.setdefault("step", []).append(step)
        shown = {}
        for name, value in losses.items():
            self.curves.setdefault(name, []).append(torch.as_tensor(value).tolist())
            shown[f"regimes/{name}"] = torch.as_tensor(value).mean().item()
        errors = self._track()
        for logger in trainer.loggers:
            logger.log_metrics(shown | errors, step)

    def _track(self) -> dict[str, float]:
        """Keep the modes' second moments; return the diagonal regimes' errors."""
        if not self.track:
            return {}
        found = self.companions.diagonals()
        for name, row in found.items():
            self.modes.setdefault(name, []).append(row.cpu())
        exact = found.get("averaged")
        if exact is None:
            return {}
        return {
            f"regimes/error_{name}": ((row - exact).abs().sum() / exact.sum()).item()
            for name, row in found.items()
            if name.startswith("tau_")
        }

    def _describe(self, trainer: Trainer, batch: int) -> None:
        """Write the theory's numbers of the run's first step."""
        folder = run_folder(trainer)
        quick = trainer.fast_dev_run  # type: ignore[attr-defined]
        if folder is None or quick or not trainer.is_global_zero:
            return
        spectrum = self.companions.spectrum
        gamma = noise_strength(batch, spectrum.samples)
        sgd = MiniBatchSGD(
            self.schedule.alpha[0].item(), self.schedule.beta[0].item(), gamma
        )
        numbers = {
            "samples": spectrum.samples,
            "batch": batch,
            "gamma": gamma,
            "alpha": sgd.alpha,
            "beta": sgd.beta,
            "lambda_max_over_samples": self.scale,
            "lr": float(sgd.alpha) / self.scale,
            "loss_at_start": spectrum.loss,
            "U(1)": total_noise(sgd, spectrum).item(),
            "alpha_crit": alpha_crit(sgd, spectrum).item(),
            "lambda_crit": lambda_crit(spectrum),
        }
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, "theory.json").write_text(json.dumps(numbers, indent=2) + "\n")


class _Draws:
    """Mini-batches of a loader, and of loaders of the seeds that follow.

    Args:
        loader: Of independent batches.
        runs: Loaders.
    """

    def __init__(self, loader: Any, runs: int):
        self.loaders = []
        for run in range(runs):
            twin = copy(loader)
            twin.seed = loader.seed + run
            twin.indices = torch.arange(len(loader.indices))
            self.loaders.append(twin)
        self.length, self.size = len(loader), loader._full
        self._epoch, self._orders = -1, torch.empty(0)

    def __call__(self, step: int) -> Tensor:
        """Return the samples of all runs' mini-batches at a step, (R, b)."""
        epoch, batch = divmod(step, self.length)
        if epoch != self._epoch:
            for loader in self.loaders:
                loader.epoch = epoch
            orders = [loader.epoch_order() for loader in self.loaders]
            self._orders = torch.stack(orders).view(-1, self.length, self.size)
            self._epoch = epoch
        return self._orders[:, batch]
