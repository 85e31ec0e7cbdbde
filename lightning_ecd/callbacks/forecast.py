"""What the theory predicts of a run that goes on, from its spectra."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_ecd.callbacks.least_squares import (
    kernel_by_layers,
    plain_sgd,
    require_regression,
    total_steps,
    training_samples,
    whole_loss,
)
from lightning_ecd.callbacks.publishing import publish
from lightning_ecd.checks import at_least
from lightning_ecd.theory import (
    KernelProduct,
    MiniBatchSGD,
    Modes,
    alpha_crit,
    from_lanczos,
    log_spaced,
    noise_strength,
    schedule,
    spectral_diagonal,
    total_noise,
)

_WHO = "trainer.callbacks: Forecast"
#: Samples whose kernel is formed.
_LARGEST = 4000


class Forecast(Callback):
    r"""Predicts loss and critical learning rate of a run of SGD with momentum.

    Of the network's tangent kernel on some training samples the two spectral measures
    are estimated by Lanczos, from products with it, whatever the network; the
    diagonal regime then predicts the losses of all steps that follow, and
    :math:`\tilde U(1) = 1` the learning rate above which they diverge. Logged are
    ``forecast/critical_lr`` and ``forecast/noise``, :math:`\tilde U(1)`, when they are
    estimated, and on some steps ``forecast/predicted`` beside ``forecast/measured``,
    the loss on the same samples; the figure is ``forecast.png``.

    Args:
        every_n_steps: Estimate anew; 0: at the start alone.
        samples: Of the training set, the first of its order; None: all. Fewer are
            learned sooner than all: the late losses come out too low.
        top: Eigenvalues found one by one.
        steps: Of Lanczos.
        probes: Random vectors of the density of the others.
        tau: τ of the diagonal regime.
        points: Steps with values between two estimates, about.
        seed: Of the random vectors.
        matrix_free: Never form the kernel, which layers that are linear or
            convolutional give at once for up to 4000 samples.

    Note:
        A later estimate takes the velocity for 0, and every one the tangent kernel for
        constant.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        samples: int | None = None,
        top: int = 50,
        steps: int = 60,
        probes: int = 2,
        tau: float = 1.0,
        points: int = 50,
        seed: int = 0,
        matrix_free: bool = False,
    ):
        at_least(1, samples=samples, top=top, steps=steps, probes=probes, points=points)
        at_least(0, every_n_steps=every_n_steps)
        self.every_n_steps, self.samples, self.points = every_n_steps, samples, points
        self.lanczos = {"top": top, "steps": steps, "probes": probes, "seed": seed}
        self.tau, self.matrix_free = tau, matrix_free
        #: First step, steps and predicted losses of every estimate.
        self.predicted: list[tuple[list[int], list[float]]] = []
        self.measured: tuple[list[int], list[float]] = ([], [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what the theory does not speak of."""
        if stage == "fit":
            require_regression(pl_module, _WHO)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the first estimate; also of a run that was begun without it."""
        self._group = plain_sgd(trainer, _WHO)
        self._steps = total_steps(trainer, _WHO)
        loader: Any = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        X, y = (tensor.to(pl_module.dtype) for tensor in training_samples(loader))
        self.X, self.y, self.N = X[: self.samples], y[: self.samples], len(y)
        self.batch = min(loader._full, self.N)
        if trainer.global_step == 0 or not self.predicted:
            self._estimate(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what was predicted beside what is; estimate anew when it is time."""
        step, every = trainer.global_step, self.every_n_steps
        steps, losses = self.predicted[-1]
        if step in steps:
            found = whole_loss(pl_module, self.X, self.y).item()
            self._remember(step, found)
            expected = losses[steps.index(step)]
            values = {"forecast/measured": found, "forecast/predicted": expected}
            for logger in trainer.loggers:
                logger.log_metrics(values, step)
        if every and step % every == 0 and step < self._steps:
            self._estimate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw measured and predicted losses."""
        if not trainer.is_global_zero or not self.measured[0]:
            return
        from lightning_ecd.theory.figures import Curve, regimes  # matplotlib: 1 s

        curves: dict[str, Curve] = {"measured": (*self.measured, None)}
        for steps, losses in self.predicted:
            curves[f"predicted at step {steps[0]}"] = (steps, losses, None)
        publish(regimes(curves), trainer, "forecast.png", "forecast/losses")

    def state_dict(self) -> dict[str, Any]:
        """Return the curves."""
        return {"predicted": list(self.predicted), "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        self.predicted = [(list(s), list(v)) for s, v in state_dict["predicted"]]
        steps, losses = state_dict["measured"]
        self.measured = list(steps), list(losses)

    def _remember(self, step: int, loss: float) -> None:
        self.measured[0].append(step)
        self.measured[1].append(loss)

    def _product(self, network: Any) -> Callable[[Tensor], Tensor]:
        """Return products with the kernel: by its matrix where layers give it."""
        by_matrix = not self.matrix_free and len(self.X) <= _LARGEST
        K = kernel_by_layers(network, self.X) if by_matrix else None
        if K is None:
            return KernelProduct(network, self.X)
        return lambda rows: rows @ K

    def _estimate(self, trainer: Trainer, pl_module: Any) -> None:
        """Estimate the spectral measures at the present weights; predict from there."""
        step = trainer.global_step
        with torch.no_grad():
            d = (pl_module(self.X) - self.y).double()
        product = self._product(pl_module.network)
        spectrum = from_lanczos(product, d, **self.lanczos).to("cpu")  # type: ignore[arg-type]
        gamma = noise_strength(self.batch, self.N)
        alpha = self._group["lr"] * spectrum.scale
        beta = self._group.get("momentum", 0.0)
        sgd = MiniBatchSGD(alpha, beta, gamma, 1.0, self.tau)
        total = self._steps - step
        if self.every_n_steps:
            total = min(total, self.every_n_steps)
        rates = schedule(max(total, 1), alpha, beta, self.batch)
        _, losses = spectral_diagonal(
            spectrum,
            Modes.start(spectrum),
            rates,
            rates.steps,
            tau2=self.tau,
            whole=self.N,
        )
        after = log_spaced(rates.steps, self.points)
        steps = [step, *(step + t for t in after)]
        values = [spectrum.loss, *(losses[t - 1].item() for t in after)]
        self.predicted.append((steps, values))
        if not self.measured[0]:
            self._remember(step, spectrum.loss)
        numbers = {
            "forecast/critical_lr": alpha_crit(sgd, spectrum).item() / spectrum.scale,
            "forecast/noise": total_noise(sgd, spectrum).item(),
        }
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step)
