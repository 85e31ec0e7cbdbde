"""The ratio of two densities, learned from samples of both."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from glob import glob
from typing import Any, Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_ecd.callbacks import WholeFiles, publish
from lightning_ecd.errors import UserError
from modules.means import Means
from modules.ratio_losses import LOSSES, checked, estimate, ratio
from modules.refusals import refuse_misfit
from modules.task import LRSchedulerFactory, Task

Loss = Literal["mlc", "sqr", "bce", "mse"]
Parametrization = Literal["exponential", "square", "linear", "odds", "probit", "arctan"]

#: Larger errors do not count in `ratio_error`, as in the reference.
LIMIT = 100.0
#: The most points in a figure.
POINTS = 5000


class LikelihoodRatio(Task):
    r"""Learns the ratio f = p1(x) / p0(x) of two densities from labelled samples.

    Each of four losses has its minimum over all functions at the true ratio, written
    as f or as the probability c = f / (1 + f) of the label y = 1. With as many
    samples of p1 as of p0:

    ====  ======================================  ==================================
    loss  mean over the batch of                  smallest value
    ====  ======================================  ==================================
    mlc   :math:`-y \ln f - (1 - y)(1 - f)`       :math:`-\frac12 KL(p_1|p_0)`
    sqr   :math:`y f^{-1/2} + (1 - y) f^{1/2}`    :math:`\int \sqrt{p_0 p_1}`
    bce   :math:`-y \ln c - (1 - y) \ln (1 - c)`  :math:`\ln 2 - JS(p_1, p_0)`
    mse   :math:`y (1 - c)^2 + (1 - y) c^2`       :math:`\frac12\int p_0p_1/(p_0+p_1)`
    ====  ======================================  ==================================

    With the network's output h, f is e^h (exponential), h^2 (square) or ReLU(h)
    (linear); c is sigmoid(h) (odds), the normal distribution function of h (probit)
    or 1/2 + arctan(h) / pi (arctan). Batches are (x, y), in evaluations also
    (x, y, exact ratio) where that is known; x (B, d), all others (B,).

    The members of an ensemble are runs of their own, with different seeds
    (``--seed_everything``): an optimizer that uses the loss must see that of its own
    network, not a sum over networks, and every member stops early on its own loss.
    `ensemble` then averages the ratios of the finished runs::

        lightning-ecd test --config logs/NAME/version_0/config.yaml \
            --model.ensemble 'logs/NAME/version_*/checkpoints/last.ckpt'

    Metrics: ``train/epoch_loss``, the mean over an epoch, is for early stopping.
    ``ratio_error`` is the mean |f - exact ratio| over the samples where it is below
    100, ``ratio_dropped`` the share of the others. ``weighted_error`` is
    |f - exact ratio| averaged over [-4, 4] with the weight N(0, 1), if d = 1 and the
    data module has a `log_ratio`; ``weighted_error_members`` and
    ``weighted_error_spread`` are mean and standard deviation of the errors of an
    ensemble's members. A test draws ``ratio.png``.

    Args:
        network: Builds the network, (B, d) -> (B, 1); in a config its class_path and
            init_args.
        optimizer: See `Task`.
        loss: "mlc", "sqr", "bce" or "mse".
        parametrization: "exponential", "square" or "linear" for mlc and sqr; "odds",
            "probit" or "arctan" for bce and mse. None: exponential, odds.
        ensemble: Pattern of the members' checkpoint files, for ``test``, ``validate``
            and ``predict``; None: this network alone.
        minibatches: See `Task`.
        scheduler: See `Task`.
        scheduler_interval: See `Task`.
        groups: See `Task`; such as other learning rates for inner layers,
            ``{"network.[36].*": {"lr": 0.01}}``.

    Note:
        1e-7 is added to f in logarithms and roots, and c is kept 1e-7 away from 0 and
        1, in all parametrizations; the reference's code leaves it out of the
        exponential one and adds it to the root of h^2. A "linear" network whose
        outputs are all negative learns nothing: its gradient is zero.

        The reference gives inner and outer layers two optimizers; here they are
        groups of one, whose momentum and energy are common to both.

    Reference:
        G. B. De Luca, B. Nachman, E. Silverstein, H. Zheng, Optimizers for stabilizing
        likelihood-free inference, arXiv 2501.18419.
    """

    metric_names = (
        "val/loss",
        "val/ratio_error",
        "test/loss",
        "test/ratio_error",
        "test/weighted_error",
    )

    def __init__(
        self,
        network: Callable[[], nn.Module],
        optimizer: OptimizerCallable,
        loss: Loss = "mlc",
        parametrization: Parametrization | None = None,
        ensemble: str | None = None,
        minibatches: int | None = None,
        scheduler: LRSchedulerFactory | None = None,
        scheduler_interval: str = "epoch",
        groups: dict[str, dict[str, Any]] | None = None,
    ):
        chosen = checked(loss, parametrization)
        super().__init__(optimizer, minibatches, scheduler, scheduler_interval, groups)
        self.parametrization: str = chosen
        self.objective = LOSSES[loss][0]
        self.network = network()
        self.ensemble = ensemble
        self.members = nn.ModuleList()
        names = ("loss", "ratio_error", "ratio_dropped")
        self.means = Means(
            f"{part}/{name}" for part in ("val", "test") for name in names
        )
        self._seen: list[Tensor] = []  # (2, B): exact and estimated ratios of a test

    def estimates(self, x: Tensor) -> Tensor:
        """Return every member's f or c at x (B, d), shape (M, B)."""
        networks: Sequence[nn.Module] = list(self.members) or [self.network]
        outputs = torch.stack([network(x).squeeze(-1) for network in networks])
        return estimate(outputs, self.parametrization)

    def ratios(self, x: Tensor) -> Tensor:
        """Return every member's ratio at x (B, d), shape (M, B)."""
        return ratio(self.estimates(x), self.parametrization)

    def forward(self, x: Tensor) -> Tensor:
        """Return the ratio at x (B, d), the mean of the members', shape (B,)."""
        return self.ratios(x).mean(0)

    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of (x, y), averaged over the members."""
        x, y = batch[:2]
        return self.objective(self.estimates(x), y).mean()

    # -- evaluation ----------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read the members of the ensemble; refuse a network that does not fit."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "dimensions"):
            d = data.dimensions
            what = f"{type(data).__name__}'s samples of {d} numbers"
            refuse_misfit(self.network, d, what)
        if self.ensemble is None:
            return
        if stage == "fit":
            raise UserError(
                "model.ensemble averages finished runs: train its members without it, "
                "one run for every --seed_everything"
            )
        files = sorted(glob(self.ensemble))
        if not files:
            raise UserError(f"model.ensemble: no file matches {self.ensemble}")
        self.members = nn.ModuleList(self._member(file) for file in files)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of one network beside those of an ensemble."""
        if self.ensemble is not None:
            raise UserError("give either model.ensemble or ckpt_path, not both")
        super().on_load_checkpoint(checkpoint)

    def _member(self, file: str) -> nn.Module:
        """Return the network of a finished run."""
        checkpoint = WholeFiles().load_checkpoint(file, map_location="cpu")
        settings = checkpoint.get("hyper_parameters", {})
        theirs = checked(settings.get("loss", "mlc"), settings.get("parametrization"))
        if theirs != self.parametrization:
            raise UserError(
                f"model.ensemble: {file} has the parametrization {theirs}, the model "
                f"{self.parametrization}"
            )
        prefix = "network."
        weights = {
            name.removeprefix(prefix): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(prefix)
        }
        network = deepcopy(self.network)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(
                f"model.ensemble: {file} is of another network than model.network"
            ) from error
        return network.eval()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the validation means."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the test means."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the estimated ratio of every sample, shape (B,)."""
        return self(batch[0])

    def _evaluate(self, batch: Any, stage: str) -> None:
        x, y, *known = batch
        self.means.log(self, f"{stage}/loss", self.loss(batch), len(y))
        if not known:
            return
        exact, found = known[0], self(x)
        error = (found - exact).abs()
        counts = error < LIMIT  # not where it is NaN
        self.means.log(self, f"{stage}/ratio_error", error[counts])
        dropped = 1 - counts.float()
        self.means.log(self, f"{stage}/ratio_dropped", dropped, prog_bar=False)
        if stage == "test":
            self._seen.append(torch.stack([exact, found]).float().cpu())

    def on_validation_epoch_end(self) -> None:
        """Log the error over an interval."""
        self._log_interval("val")

    def on_test_start(self) -> None:
        """Forget the samples of an earlier test."""
        self._seen.clear()

    def on_test_epoch_end(self) -> None:
        """Log the error over an interval; draw the ratios."""
        curves = self._log_interval("test")
        if self._seen and self.trainer.is_global_zero:
            self._draw(curves)

    def _log_interval(self, stage: str) -> list[Tensor] | None:
        """Log the error over [-4, 4]; return x, the exact ratio, every member's."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "log_ratio") or data.dimensions != 1:
            return None
        like = next(self.network.parameters())
        x = torch.linspace(-4, 4, 801, device=like.device, dtype=like.dtype)
        exact, found = data.log_ratio(x.unsqueeze(1)).exp(), self.ratios(x.unsqueeze(1))
        weight = torch.softmax(-x.square() / 2, 0)
        values = {"weighted_error": (found.mean(0) - exact).abs() @ weight}
        if len(found) > 1:
            errors = (found - exact).abs() @ weight
            values["weighted_error_members"] = errors.mean()
            values["weighted_error_spread"] = errors.std()
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, sync_dist=True)
        return [x.cpu(), exact.cpu(), found.cpu()]

    def _draw(self, curves: list[Tensor] | None) -> None:
        exact, found = torch.cat(self._seen, 1)[:, :POINTS]
        from lightning_ecd.figures import ratios  # matplotlib costs a second

        figure = ratios(exact, found, curves)
        publish(figure, self.trainer, "ratio.png", "test/ratio")
