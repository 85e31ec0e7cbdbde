"""One table of optimizers and their arguments; small problems to minimize.

Every test that runs for all optimizers is parametrised over `CASES`. A registered
class without an entry here fails `tests/optimizers/test_registry.py`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ecd.optimizers import REGISTRY, Descent
from tests.case import Case, Settings, outside
from tests.cases_learned import LEARNED
from tests.cases_local_entropy import LOCAL_ENTROPY
from tests.cases_random_bases import RANDOM_BASES

_BBI = {"lr": 0.05, "bounce_every": 7, "fixed_bounces": 2, "patience": 9}
_SEP = {"lr": 0.2, "nu": 1e-3}
_Q1 = {"lr": 0.03, "nu": 1e-3, "eta": 5.0, "f_min": -0.5}

CASES: dict[str, Case] = {
    "SGD": Case(
        {
            "plain": {"lr": 0.05},
            "momentum": {"lr": 0.02, "momentum": 0.8},
            "nesterov": {"lr": 0.02, "momentum": 0.8, "nesterov": True},
        }
    ),
    "Adam": Case(
        {
            "plain": {"lr": 0.05},
            "decay": {"lr": 0.05, "weight_decay": 1e-3},
            "amsgrad": {"lr": 0.05, "amsgrad": True},
        }
    ),
    "AdamW": Case({"plain": {"lr": 0.05}, "amsgrad": {"lr": 0.05, "amsgrad": True}}),
    "RMSprop": Case(
        {
            "plain": {"lr": 0.01},
            "momentum": {"lr": 0.01, "momentum": 0.5},
            "centered": {"lr": 0.01, "centered": True},
        }
    ),
    "HeavyBall": Case(
        {
            "positive": {"lr": 0.02, "momentum": 0.8},
            "negative": {"lr": 0.05, "momentum": -0.5},
            "none": {"lr": 0.05, "momentum": 0.0},
            "decay": {"lr": 0.02, "momentum": 0.5, "weight_decay": 1e-2},
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("momentum", -1.0, 1.0, 2.0),
            *outside("weight_decay", -1e-3, float("inf")),
        ],
    ),
    "BBI": Case(
        {
            "bouncing": _BBI,
            "patient": {"lr": 0.05, "bounce_every": 10**20, "patience": 10**25},
            "extra": {**_BBI, "extra_energy": 0.5, "f_min": -0.05},
            "isotropic": {**_BBI, "bounce": "isotropic", "seed": 3},
            "decay": {**_BBI, "weight_decay": 1e-2, "extra_energy": 0.1},
            "unconserved": {**_BBI, "conserve_energy": False},
            "unfixed": {**_BBI, "fixed_bounces": 0},
            "tuning": {**_BBI, "self_tuning": True, "f_min": 0.2, "extra_energy": 0.1},
            "averaged": {**_BBI, "energy_batches": 3, "extra_energy": 0.1},
            "compat": {**_BBI, "compat": True, "extra_energy": 0.2},
            "compat_decay": {
                **_BBI,
                "compat": True,
                "extra_energy": 0.2,
                "weight_decay": 1e-2,
                "self_tuning": True,
            },
            "compat_unfixed": {**_BBI, "compat": True, "fixed_bounces": 0},
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("f_min", float("inf")),
            *outside("extra_energy", -0.1, float("inf")),
            *outside("bounce_every", 0, -1),
            *outside("fixed_bounces", -1),
            *outside("patience", 0, -1),
            *outside("weight_decay", -1e-3, float("inf")),
            *outside("energy_batches", 0),
            ({"bounce": "spherical"}, "bounce"),
        ],
    ),
    "ECDSep": Case(
        {
            "still": {**_SEP, "nu": 0.0},
            "turning": {**_SEP, "seed": 11},
            "extra": {**_SEP, "extra_energy": 0.5, "f_min": -0.05},
            "eta": {**_SEP, "eta": 2.5, "extra_energy": 0.3},
            "unregular": {**_SEP, "s": 0.0, "lr": 0.05},
            "half": {**_SEP, "s": 0.5, "eta": 2.0},
            "decay": {**_SEP, "weight_decay": 1e-2},
            "unconserved": {**_SEP, "conserve_energy": False},
            "scaled": {**_SEP, "scaled": True, "eta": 2.0, "nu": 1e-2},
            "damped": {**_SEP, "noise_damping": 1.0, "extra_energy": 0.3, "nu": 1e-2},
            "tuning": {**_SEP, "self_tuning": True, "eta": 1.5},
            "averaged": {**_SEP, "energy_batches": 3, "extra_energy": 0.1},
            "given": {**_SEP, "s": 0.0, "energy": 1.0, "lr": 0.05},
            "absolute": {**_SEP, "rule": "absolute", "extra_energy": 0.5, "eta": 2.0},
            "polyak": {"lr": 0.02, "rule": "polyak", "eta": 1.5},
            "compat": {**_SEP, "compat": True, "eta": 2.0, "weight_decay": 1e-2},
            "compat_tuning": {
                **_SEP,
                "compat": True,
                "self_tuning": True,
                "eta": 3.0,
                "f_min": 0.01,
            },
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("f_min", float("inf")),
            *outside("extra_energy", -0.1, float("inf")),
            *outside("eta", 0.9, 0.0, -1.0),
            *outside("nu", -1e-9),
            *outside("s", -1.0),
            *outside("weight_decay", -1e-3, float("inf")),
            *outside("noise_damping", -1.0),
            *outside("energy_batches", 0),
            *outside("energy", 0.0, -1.0, float("inf")),
            ({"energy": 1.0, "energy_batches": 3}, "energy_batches"),
            ({"s": 0.0, "extra_energy": 3.0}, "extra_energy"),
            ({"rule": "newton"}, "rule"),
            ({"self_tuning": True, "compat": True, "eta": 2.0}, "eta"),
        ],
    ),
    "ECDSepLeapfrog": Case(
        {
            "still": {**_SEP, "nu": 0.0},
            "turning": {**_SEP, "seed": 11},
            "extra": {**_SEP, "extra_energy": 0.5, "f_min": -0.05, "nu": 1e-2},
            "scaled": {**_SEP, "scaled": True, "eta": 2.5, "nu": 1e-2},
            "undamped": {**_SEP, "noise_damping": 0.0},
            "decay": {**_SEP, "weight_decay": 1e-2},
            "unconserved": {**_SEP, "conserve_energy": False},
            "tuning": {**_SEP, "self_tuning": True},
            "averaged": {**_SEP, "energy_batches": 3, "extra_energy": 0.1},
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("f_min", float("inf")),
            *outside("extra_energy", -0.1, float("inf")),
            *outside("eta", 0.9, 0.0, -1.0),
            *outside("nu", -1e-9),
            *outside("noise_damping", -1.0),
            *outside("energy_batches", 0),
            *outside("weight_decay", -1e-3, float("inf")),
        ],
    ),
    "ECDq1": Case(
        {
            "still": {**_Q1, "nu": 0.0},
            "turning": {**_Q1, "seed": 11},
            "scaled": {**_Q1, "scaled": True, "lr": 0.06, "nu": 0.1},
            "slowing": {**_Q1, "gamma": 0.5},
            "decay": {**_Q1, "weight_decay": 1e-2},
            "unconserved": {**_Q1, "conserve_energy": False},
            "tuning": {**_Q1, "self_tuning": True, "f_min": 0.2},
            "sign": {**_Q1, "step_size": "sign", "lr": 0.01},
            "first_gradient": {**_Q1, "step_size": "first_gradient", "lr": 0.3},
            "theta": {**_Q1, "step_size": "theta", "lr": 0.05},
            "adaptive": {**_Q1, "step_size": "adaptive", "lr": 0.05},
            "compat": {**_Q1, "compat": True},
        },
        [
            *outside("lr", 0.0, -1.0, float("inf")),
            *outside("f_min", float("inf")),
            *outside("eta", 0.0, -1.0, float("inf")),
            *outside("nu", -1e-9),
            *outside("gamma", -1.0),
            *outside("weight_decay", -1e-3, float("inf")),
            ({"step_size": "newton"}, "step_size"),
        ],
    ),
    **LOCAL_ENTROPY,
    **RANDOM_BASES,
    **LEARNED,
}


def variants(
    keep: Callable[[str], bool] = lambda name: True, at_most: int | None = None
) -> pytest.MarkDecorator:
    """Return a parametrisation over (name, settings) of the optimizers kept.

    Args:
        keep: Which optimizers, by the name under which they are registered.
        at_most: How many variants of each; None: all.
    """
    return pytest.mark.parametrize(
        ("name", "settings"),
        [
            pytest.param(name, settings, id=f"{name}-{label}")
            for name, case in CASES.items()
            if name in REGISTRY and keep(name)
            for label, settings in list(case.good.items())[:at_most]
        ],
    )


def typical(keep: Callable[[str], bool] = lambda name: True) -> pytest.MarkDecorator:
    """Return two variants of each: for what the step protocol alone decides."""
    return variants(keep, at_most=2)


def ours(name: str) -> bool:
    """Return whether an optimizer follows this project's step protocol."""
    return issubclass(REGISTRY[name].cls, Descent)


def build(name: str, settings: Settings, params: Any) -> torch.optim.Optimizer:
    """Return a registered optimizer on `params`."""
    return REGISTRY[name].cls(params, **settings)


# Small problems: a problem is a list of starting tensors and a loss on such a list.

Loss = Callable[[Sequence[Tensor]], Tensor]

SHAPES = [(3, 4), (5,), (), (2, 3, 2)]


def _entries(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params])


def quadratic(params: Sequence[Tensor]) -> Tensor:
    """0.05 + half a weighted sum of squares; curvatures between 0.2 and 2."""
    v = _entries(params)
    h = torch.linspace(0.2, 2.0, v.numel(), dtype=v.dtype, device=v.device)
    return 0.05 + 0.5 * (h * (v - 0.3) ** 2).sum()


def rosenbrock(params: Sequence[Tensor]) -> Tensor:
    """A bent valley between consecutive entries, scaled to curvatures near 5."""
    v = _entries(params)
    return 0.01 + 0.1 * ((1 - v[:-1]) ** 2 + 4 * (v[1:] - v[:-1] ** 2) ** 2).sum()


def logistic(params: Sequence[Tensor]) -> Tensor:
    """Log loss of a linear classifier on 60 fixed points, not separable."""
    v = _entries(params)
    points, labels = _points(v.numel(), v.dtype, v.device)
    return torch.nn.functional.binary_cross_entropy_with_logits(points @ v, labels)


@cache
def _points(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(7)
    points = torch.randn(60, n, generator=draws, dtype=torch.float64)
    noise = torch.randn(60, generator=draws, dtype=torch.float64)
    labels = points[:, 0] - points[:, 1] + noise > 0
    return points.to(device, dtype), labels.to(device, dtype)


PROBLEMS: dict[str, Loss] = {
    "quadratic": quadratic,
    "rosenbrock": rosenbrock,
    "logistic": logistic,
}


def start(
    dtype: torch.dtype = torch.float64,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    device: str = "cpu",
    seed: int = 1,
) -> list[Tensor]:
    """Return leaf parameters with fixed random values of size about 0.7."""
    draws = torch.Generator().manual_seed(seed)
    return [
        (0.7 * torch.randn(shape, generator=draws, dtype=torch.float64))
        .to(device, dtype)
        .requires_grad_()
        for shape in shapes
    ]


def closure_of(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], loss: Loss
) -> Callable[[], Tensor]:
    """Return the closure that training would hand to `step`."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(params)
        value.backward()
        return value

    return closure


def descend(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    loss: Loss,
    steps: int,
) -> list[float]:
    """Take steps and return the losses at their starting points."""
    closure = closure_of(optimizer, params, loss)
    return [optimizer.step(closure).item() for _ in range(steps)]


def values(params: Sequence[Tensor]) -> Tensor:
    """Return a copy of all entries in contiguous order, shape (n,)."""
    return _entries([p.detach().contiguous() for p in params]).clone()
