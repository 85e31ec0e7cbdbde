"""A plan of what to find out about the loss at a point, and what was found."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_ecd.checks import above, at_least
from lightning_ecd.curvature import (
    Loss,
    Matrix,
    Spectrum,
    hutchinson_diagonal,
    hutchpp_trace,
    lanczos_quadrature,
    landscape,
    side_by_side,
    top_eigenpairs,
)
from lightning_ecd.errors import UserError

#: The most parameters of an exact spectrum: the matrix has their square.
_LARGEST = 60_000
#: Rows of an exact matrix that are computed at once.
_BLOCK = 64
#: Told a stage's name and the calls of the loss's `progress` in it; None: unknown.
Stage = Callable[[str, int | None], None]


@dataclass
class Findings:
    """What an inspection found.

    Args:
        numbers: Name -> value and standard error (nan: none).
        arrays: Name -> what the figures show.
        spectrum: Of the matrix.
    """

    numbers: dict[str, tuple[float, float]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    spectrum: Spectrum | None = None

    def number(self, name: str, value: float, error: float = math.nan) -> None:
        """Add a number."""
        self.numbers[name] = value, error

    def array(self, name: str, values: Any) -> None:
        """Add an array."""
        values = values.cpu().numpy() if isinstance(values, Tensor) else values
        self.arrays[name] = np.asarray(values)


class Inspection:
    """What to find out about a loss at a point.

    Args:
        matrix: "hessian", "ggn" (generalized Gauss-Newton) or "fisher" (empirical).
        probes: Random vectors of the spectral density; 0: no density.
        steps: Of Lanczos for each of them.
        width: Of the Gaussians that broaden the density; default: 10^-2.5 of half
            the range.
        exact: All eigenvalues of the whole Hessian instead; up to 60,000 parameters.
        products: With random vectors for the trace by Hutch++, at least 6; 0: none.
        top: Leading eigenvalues; 0: none.
        diagonal: Also the diagonals of the matrix (estimated with `products` vectors)
            and of the empirical Fisher matrix.
        noise: Relative noise on the weights at which the local energy is measured.
        draws: Of that noise.
        rho: Distance of the sharpness, as in SAM; 0: no sharpness.
        points: Of every slice of the loss; 0: no slices.
        reach: Of the slices on either side, in norms of the filters.
        plane: Points along either side of a slice in two directions; 0: none.
        probe_steps: Steps of noisy descent, loss against distance; 0: none.
        probe_lr: Its learning rate.
        probe_noise: Its noise.
        probe_weight_decay: Its weight decay.
        seed: Of all random vectors.
    """

    def __init__(
        self,
        matrix: Matrix = "hessian",
        probes: int = 10,
        steps: int = 90,
        width: float | None = None,
        exact: bool = False,
        products: int = 30,
        top: int = 5,
        diagonal: bool = False,
        noise: tuple[float, ...] = (0.05, 0.1, 0.2),
        draws: int = 10,
        rho: float = 0.05,
        points: int = 21,
        reach: float = 1.0,
        plane: int = 0,
        probe_steps: int = 0,
        probe_lr: float = 0.1,
        probe_noise: float = 1e-3,
        probe_weight_decay: float = 1e-3,
        seed: int = 0,
    ):
        if matrix not in get_args(Matrix):
            raise ValueError(f"matrix must be hessian, ggn or fisher, got {matrix!r}")
        if exact and matrix != "hessian":
            raise ValueError(f"exact is for the matrix hessian, got {matrix}")
        if products and products < 6:
            raise ValueError(f"products must be 0 or at least 6, got {products}")
        at_least(1, steps=steps, draws=draws)
        at_least(0, probes=probes, top=top, points=points, plane=plane, rho=rho)
        at_least(0, probe_steps=probe_steps, probe_noise=probe_noise)
        at_least(0, probe_weight_decay=probe_weight_decay)
        above(0, reach=reach, probe_lr=probe_lr)
        above(0, width=1.0 if width is None else width)
        for value in noise:
            above(0, noise=value)
        self.matrix: Matrix = matrix
        self.probes, self.steps, self.width, self.exact = probes, steps, width, exact
        self.products, self.top, self.diagonal = products, top, diagonal
        self.noise, self.draws, self.rho = noise, draws, rho
        self.points, self.reach, self.plane = points, reach, plane
        self.probe_steps, self.probe_lr = probe_steps, probe_lr
        self.probe_noise, self.probe_weight_decay = probe_noise, probe_weight_decay
        self.seed = seed

    def run(
        self, loss: Loss, stage: Stage | None = None, other: Tensor | None = None
    ) -> Findings:
        """Return what was found.

        Args:
            loss: At the point, where it is again afterwards.
            stage: Told what begins.
            other: Parameters of a second point, (n,): the loss on the way to it.

        Raises:
            UserError: If the loss is not finite, or the network too large.
        """
        told = stage or (lambda name, total: None)
        found = Findings()
        told("loss", 2 * len(loss.batches))
        value = loss.value()
        if not math.isfinite(value):
            raise UserError(f"the loss at this point is {value}: it has no curvature")
        found.number("loss", value)
        found.number("gradient_norm", loss.gradient().norm().item())
        if len(loss.batches) > 1:
            told("gradients of batches", len(loss.batches))
            correlation = landscape.gradient_correlation(loss)
            found.number("gradient_correlation", *correlation)
        self._spectrum(loss, told, found)
        self._estimates(loss, told, found)
        self._flatness(loss, told, found)
        self._slices(loss, told, found, other)
        self._probe(loss, told, found)
        return found

    def _spectrum(self, loss: Loss, stage: Stage, found: Findings) -> None:
        like, batches = loss.x, len(loss.batches)
        if self.exact:
            _refuse_what_does_not_fit(loss)
            stage("whole matrix", batches * math.ceil(loss.n / _BLOCK))
            spectrum = Spectrum.exact(loss.hessian(_BLOCK))
        elif self.probes:
            m = min(self.steps, loss.n)
            rounds = math.ceil(self.probes / side_by_side(like, self.probes, m))
            stage("spectral density", rounds * m * batches)
            product = loss.product(self.matrix)
            spectrum = lanczos_quadrature(product, like, self.probes, m, self.seed)
        else:
            return
        found.spectrum = spectrum
        found.number("lowest_eigenvalue", spectrum.nodes.min().item())
        found.number("largest_eigenvalue", spectrum.nodes.max().item())
        found.number("trace", *spectrum.trace())
        largest = spectrum.nodes.abs().max().item()
        cuts = {"1e-4": 1e-4, "1e-2": 1e-2, "1e-4_of_largest": 1e-4 * largest}
        for name, cut in cuts.items():
            least, most = spectrum.share_bounds(-cut, cut)
            found.number(f"share_within_{name}", *spectrum.share(-cut, cut))
            found.number(f"share_within_{name}_least", least)
            found.number(f"share_within_{name}_most", most)
        found.array("nodes", spectrum.nodes)
        found.array("weights", spectrum.weights)

    def _estimates(self, loss: Loss, stage: Stage, found: Findings) -> None:
        product, like, batches = loss.product(self.matrix), loss.x, len(loss.batches)
        if self.products:
            stage("trace", 3 * batches)
            trace = hutchpp_trace(product, like, self.products, self.seed)
            found.number("trace_hutchpp", *trace)
        if self.top:
            stage("leading eigenvalues", None)
            values, vectors, errors = top_eigenpairs(
                product, like, min(self.top, loss.n), seed=self.seed
            )
            for i, (value, error) in enumerate(zip(values, errors, strict=True)):
                found.number(f"top_{i + 1}", value.item(), error.item())
            found.array("top_vectors", vectors)
        if self.diagonal:
            stage("diagonals", 2 * batches)
            diagonal, error = hutchinson_diagonal(
                product, like, max(2, self.products), self.seed
            )
            found.array("diagonal", diagonal)
            found.array("diagonal_error", error)
            found.array("fisher_diagonal", loss.fisher_diagonal())

    def _flatness(self, loss: Loss, stage: Stage, found: Findings) -> None:
        stage("flatness", (len(self.noise) * (self.draws + 1) + 3) * len(loss.batches))
        for std in self.noise:
            energy = landscape.local_energy(loss, std, self.draws, self.seed)
            found.number(f"local_energy_{std:g}", *energy)
        if self.rho:
            found.number(f"sharpness_{self.rho:g}", landscape.sharpness(loss, self.rho))

    def _slices(
        self, loss: Loss, stage: Stage, found: Findings, other: Tensor | None
    ) -> None:
        batches = len(loss.batches)
        drawn = range(2 if self.points or self.plane else 0)
        directions = [landscape.filter_normalized(loss, self.seed, i) for i in drawn]
        if self.points:
            stage("slices", 2 * self.points * batches)
            places = torch.linspace(-self.reach, self.reach, self.points)
            found.array("places", places)
            for i, direction in enumerate(directions):
                found.array(f"slice_{i + 1}", landscape.line(loss, direction, places))
        if other is not None:
            count = max(self.points, 11)
            stage("way to the other checkpoint", count * batches)
            places = torch.linspace(0, 1, count)
            found.array("way", landscape.line(loss, other - loss.x, places))
            found.number("distance_to_other", (other - loss.x).norm().item())
        if self.plane:
            stage("plane", self.plane**2 * batches)
            places = torch.linspace(-self.reach, self.reach, self.plane)
            first, second = directions
            found.array("plane", landscape.plane(loss, first, second, places))

    def _probe(self, loss: Loss, stage: Stage, found: Findings) -> None:
        if not self.probe_steps:
            return
        every = max(1, self.probe_steps // 50)
        records = math.ceil(self.probe_steps / every) + 1
        stage("noisy descent", self.probe_steps + records * len(loss.batches))
        probe = landscape.entropy_probe(
            loss,
            self.probe_steps,
            self.probe_lr,
            self.probe_noise,
            self.probe_weight_decay,
            every,
            self.seed,
        )
        found.array("probe_steps", probe.steps)
        found.array("probe_distances", probe.distances)
        found.array("probe_losses", probe.losses)


def _refuse_what_does_not_fit(loss: Loss) -> None:
    """Refuse a matrix that would take hours, or more memory than there is."""
    n, x = loss.n, loss.x
    if n > _LARGEST:
        raise UserError(
            f"--exact: the model has {n:,} parameters, at most {_LARGEST:,} are "
            "possible: leave it out"
        )
    needed = 3 * n * n * x.element_size()  # the matrix, its copy, and working space
    if x.is_cuda:
        free = torch.cuda.mem_get_info(x.device)[0]
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise UserError(
            f"--exact: the matrix of {n:,} parameters needs {needed / 1e9:.0f} GB, "
            f"there are {free / 1e9:.0f} GB: leave it out"
        )
